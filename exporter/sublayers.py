"""The sublayers of a pre-norm transformer, each of its own width, and the steps that they make up.

A step reads the residual once: each of its sublayers (attention or MLP) normalises it, computes, and
adds its output back; a constant may be added along with them. Weights are stored (in, out), `x @ W`,
heads side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.positions import Positions

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


def freeze(tensor: Tensor | None) -> nn.Parameter | None:
    """The tensor as a parameter that shares its storage and never trains."""
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang and Sennrich, arXiv 1910.07467); gain and bias may be folded into what follows."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None = None, *, eps: float, rms: bool = False) -> None:
        super().__init__()
        self.weight = freeze(weight)  # (d_model,)
        self.bias = freeze(bias)  # (d_model,)
        self.eps = eps
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised: (..., d_model)."""
        if self.rms:
            return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"eps": self.eps, "rms": self.rms}


class Attention(nn.Module):
    """Causal self-attention over some of a layer's query heads; `heads` are their original indices.

    Query head h reads key/value head h // group; those that some query head reads are here, in order.
    W_Q: (d_model, head * d_head). W_K, W_V: (d_model, kv_head * d_head). W_O: (head * d_head, d_model). b_Q, b_K,
    b_V, b_O: as wide as what they are added to, or None. q_norm, k_norm: (d_head,), the gains of RMSNorms over
    each query and key, or None.
    """

    kind = "attention"
    tensor_names = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "q_norm", "k_norm")

    def __init__(
        self,
        norm: Norm,
        tensors: Mapping[str, Tensor | None],
        *,
        layer: int,
        heads: tuple[int, ...],
        scale: float,
        group: int = 1,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.heads = heads
        self.scale = scale
        self.group = group
        for name in self.tensor_names:
            self.register_parameter(name, freeze(tensors.get(name)))

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    b_Q: nn.Parameter | None
    b_K: nn.Parameter | None
    b_V: nn.Parameter | None
    b_O: nn.Parameter | None
    q_norm: nn.Parameter | None
    k_norm: nn.Parameter | None

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.W_Q.shape[1] // len(self.heads)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Original indices of the key/value heads that are here."""
        return tuple(sorted({head // self.group for head in self.heads}))

    @property
    def kv_places(self) -> list[int]:
        """For each query head, the place of its key/value head among those that are here."""
        return [self.kv_heads.index(head // self.group) for head in self.heads]

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_O."""
        return self.b_O

    def z(self, x: Tensor, at: Positions, *, last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """What each head reads from the residual x (batch, pos, d_model): (batch, pos, head, d_head).

        With `last`, only at that many last positions: (batch, last, head, d_head). `opening` is the residual
        at the positions before x that all prompts share, (1, opening, d_model).
        """
        x = self.norm(x)
        n_queries = x.shape[1] if last is None else last
        q = self._split(_affine(x[:, -n_queries:], self.W_Q, self.b_Q), len(self.heads))
        q = _rotate(_rms_norm(q, self.q_norm, self.norm.eps), at.take_last(last))
        k, v = self.keys_values(x, at)
        if opening is not None:
            assert at.opening is not None
            shared = self.keys_values(self.norm(opening), at.opening)
            k, v = (
                torch.cat([s.expand(len(x), -1, -1, -1), own], dim=2) for s, own in zip(shared, (k, v), strict=True)
            )
        if self.group > 1:
            k, v = k[:, self.kv_places], v[:, self.kv_places]  # (batch, head, pos, d_head)
        is_causal = last is None and at.mask is None and opening is None
        mask = None if is_causal else at.visible(n_queries)
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=self.scale)
        return z.transpose(1, 2)  # (batch, pos, head, d_head)

    def keys_values(self, x: Tensor, at: Positions) -> tuple[Tensor, Tensor]:
        """Of a normalised residual, (batch, pos, d_model): (batch, kv_head, pos, d_head) each."""
        k = self._split(_affine(x, self.W_K, self.b_K), len(self.kv_heads))
        v = self._split(_affine(x, self.W_V, self.b_V), len(self.kv_heads))
        return _rotate(_rms_norm(k, self.k_norm, self.norm.eps), at), v

    def _split(self, x: Tensor, n_heads: int) -> Tensor:
        x = x.unflatten(-1, (n_heads, self.d_head))  # (batch, pos, head, d_head)
        return x.transpose(1, 2)  # (batch, head, pos, d_head)

    def project(self, z: Tensor) -> Tensor:
        """The heads' joint output, b_O included: (batch, pos, d_model)."""
        return _affine(z.flatten(-2), self.W_O, self.b_O)

    def forward(self, x: Tensor, at: Positions, *, last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, last, d_model)."""
        return self.project(self.z(x, at, last=last, opening=opening))

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "heads": list(self.heads), "scale": self.scale, "group": self.group}


class MLP(nn.Module):
    """A two-layer MLP, gated where there is a W_gate: act(x W_gate) * (x W_in) instead of act(x W_in).

    W_in, W_gate: (d_model, d_mlp). W_out: (d_mlp, d_model). Biases are as wide as what they are added to, or None.
    """

    kind = "mlp"
    tensor_names = ("W_in", "b_in", "W_out", "b_out", "W_gate", "b_gate")

    def __init__(self, norm: Norm, tensors: Mapping[str, Tensor | None], *, layer: int, activation: str) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.activation = activation
        for name in self.tensor_names:
            self.register_parameter(name, freeze(tensors.get(name)))

    W_in: nn.Parameter
    b_in: nn.Parameter | None
    W_out: nn.Parameter
    b_out: nn.Parameter | None
    W_gate: nn.Parameter | None
    b_gate: nn.Parameter | None

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_out."""
        return self.b_out

    def forward(self, x: Tensor, at: Positions, *, last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, last, d_model)."""
        x = self.norm(x if last is None else x[:, -last:])
        activation = ACTIVATIONS[self.activation]
        hidden = _affine(x, self.W_in, self.b_in)  # (batch, pos, d_mlp)
        if self.W_gate is None:
            hidden = activation(hidden)
        else:
            hidden = activation(_affine(x, self.W_gate, self.b_gate)) * hidden
        return _affine(hidden, self.W_out, self.b_out)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "activation": self.activation}


Sublayer = Attention | MLP


class Step(nn.Module):
    """Sublayers that read the same residual, and a constant that is added with their outputs.

    constant: (d_model,), or (pos, d_model) where it differs by position, or None. `load` gives the step with
    its weights in memory: itself, but where they are kept elsewhere until they are needed.
    """

    def __init__(
        self, sublayers: list[Sublayer], constant: Tensor | None = None, *, load: Callable[[], Step] | None = None
    ) -> None:
        super().__init__()
        self.sublayers = cast("Sequence[Sublayer]", nn.ModuleList(sublayers))  # ModuleList is not generic
        self.constant = freeze(constant)
        self._load = load

    def load(self) -> Step:
        """The step with its weights in memory."""
        return self if self._load is None else self._load()

    @property
    def attends(self) -> bool:
        """Whether the step reads other positions."""
        return any(isinstance(sublayer, Attention) for sublayer in self.sublayers)

    @property
    def device(self) -> torch.device | None:
        """Where the step's tensors are; None for one without any."""
        return next((tensor.device for tensor in self.parameters()), None)

    def forward(self, x: Tensor, at: Positions, *, last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """The residual after the step: (batch, pos, d_model), or (batch, last, d_model).

        A step that does not attend may be given the last positions alone. `opening` as in `Attention.z`.
        """
        if self.device is not None:
            x, at = x.to(self.device), at.to(self.device)
            opening = None if opening is None else opening.to(self.device)
        out = x if last is None else x[:, -last:]
        if self.constant is not None:
            out = out + (self.constant if self.constant.ndim == 1 else at.take_last(last).pick(self.constant))
        for sublayer in self.sublayers:
            out = out + sublayer(x, at, last=last, opening=opening)
        return out


def run_to_last(
    steps: Sequence[Step], x: Tensor, at: Positions, *, last: int = 1, opening: Tensor | None = None
) -> Tensor:
    """The residual at the last positions after some steps: (batch, pos, d_model) -> (batch, last, d_model).

    From the last step that attends on, only these are computed; where none attends, x may hold them alone.
    `opening` is what precedes x in every prompt, (1, opening, d_model), at the positions `at.opening`.
    """
    reads_all = max((index for index, step in enumerate(steps) if step.attends), default=-1)
    for index, step in enumerate(steps):
        cut, step = last if index >= reads_all else None, step.load()
        after = None if opening is None or cut or at.opening is None else step(opening, at.opening)
        x, opening = step(x, at, last=cut, opening=opening), after
    return x[:, -last:]


def _rotate(x: Tensor, at: Positions) -> Tensor:
    """Rotary embedding of (batch, head, pos, d_head) on its first dimensions, halves paired."""
    if at.rotary is None:
        return x
    cos, sin = (part.to(x.dtype) for part in at.rotary)  # (batch or 1, 1, pos, n_rotary)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else functional.rms_norm(x, x.shape[-1:], weight, eps)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight.T, bias)
