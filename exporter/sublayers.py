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
    """LayerNorm; without gain and bias once those are folded into what follows."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> None:
        super().__init__()
        self.weight = freeze(weight)  # (d_model,)
        self.bias = freeze(bias)  # (d_model,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised: (..., d_model)."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"eps": self.eps}


class Attention(nn.Module):
    """Causal self-attention over some of a layer's heads; `heads` are their original indices.

    W_Q, W_K, W_V: (d_model, head * d_head). W_O: (head * d_head, d_model). b_Q, b_K, b_V:
    (head * d_head,) or None. b_O: (d_model,) or None.
    """

    kind = "attention"

    def __init__(
        self, norm: Norm, tensors: Mapping[str, Tensor | None], *, layer: int, heads: tuple[int, ...], scale: float
    ) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.heads = heads
        self.scale = scale
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            self.register_parameter(name, freeze(tensors.get(name)))

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    b_Q: nn.Parameter | None
    b_K: nn.Parameter | None
    b_V: nn.Parameter | None
    b_O: nn.Parameter | None

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.W_Q.shape[1] // len(self.heads)

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_O."""
        return self.b_O

    def z(self, x: Tensor, *, last: bool = False, opening: Tensor | None = None) -> Tensor:
        """What each head reads from the residual x (batch, pos, d_model): (batch, pos, head, d_head).

        With `last`, only at the last position, which attends to all: (batch, 1, head, d_head). `opening`
        is the residual of positions before x that all prompts share, (1, opening, d_model).
        """
        x = self.norm(x)
        q = self._split(_affine(x[:, -1:] if last else x, self.W_Q, self.b_Q))
        k, v = (self._split(_affine(x, w, b)) for w, b in ((self.W_K, self.b_K), (self.W_V, self.b_V)))
        mask = None
        if opening is not None:
            first = self.norm(opening)
            shared = (self._split(_affine(first, w, b)) for w, b in ((self.W_K, self.b_K), (self.W_V, self.b_V)))
            k, v = (
                torch.cat([s.expand(len(x), -1, -1, -1), own], dim=2) for s, own in zip(shared, (k, v), strict=True)
            )
            mask = None if last else _causal_mask(x.shape[1], opening.shape[1], x.device)
        is_causal = not last and opening is None
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=self.scale)
        return z.transpose(1, 2)  # (batch, pos, head, d_head)

    def _split(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (len(self.heads), self.d_head))  # (batch, pos, head, d_head)
        return x.transpose(1, 2)  # (batch, head, pos, d_head)

    def project(self, z: Tensor) -> Tensor:
        """The heads' joint output, b_O included: (batch, pos, d_model)."""
        return _affine(z.flatten(-2), self.W_O, self.b_O)

    def forward(self, x: Tensor, *, last: bool = False, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, 1, d_model) with `last`."""
        return self.project(self.z(x, last=last, opening=opening))

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "heads": list(self.heads), "scale": self.scale}


class MLP(nn.Module):
    """A two-layer MLP. W_in: (d_model, d_mlp), W_out: (d_mlp, d_model), biases or None."""

    kind = "mlp"

    def __init__(self, norm: Norm, tensors: Mapping[str, Tensor | None], *, layer: int, activation: str) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.activation = activation
        for name in ("W_in", "b_in", "W_out", "b_out"):
            self.register_parameter(name, freeze(tensors.get(name)))

    W_in: nn.Parameter
    b_in: nn.Parameter | None
    W_out: nn.Parameter
    b_out: nn.Parameter | None

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_out."""
        return self.b_out

    def forward(self, x: Tensor, *, last: bool = False, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, 1, d_model) with `last`."""
        x = x[:, -1:] if last else x
        hidden = ACTIVATIONS[self.activation](_affine(self.norm(x), self.W_in, self.b_in))  # (batch, pos, d_mlp)
        return _affine(hidden, self.W_out, self.b_out)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "activation": self.activation}


Sublayer = Attention | MLP


class Step(nn.Module):
    """Sublayers that read the same residual, and a constant that is added with their outputs.

    constant: (d_model,), or (pos, d_model) where it differs by position, or None.
    """

    def __init__(self, sublayers: list[Sublayer], constant: Tensor | None = None) -> None:
        super().__init__()
        self.sublayers = cast("Sequence[Sublayer]", nn.ModuleList(sublayers))  # ModuleList is not generic
        self.constant = freeze(constant)

    @property
    def attends(self) -> bool:
        """Whether the step reads other positions."""
        return any(isinstance(sublayer, Attention) for sublayer in self.sublayers)

    def forward(self, x: Tensor, *, last: bool = False, opening: Tensor | None = None) -> Tensor:
        """The residual after the step: (batch, pos, d_model), or (batch, 1, d_model) with `last`.

        A step that does not attend may be given the last position alone. `opening` as in `Attention.z`.
        """
        out = x[:, -1:] if last else x
        if self.constant is not None:
            out = out + self._constant_at(x.shape[1], last, 0 if opening is None else opening.shape[1])
        for sublayer in self.sublayers:
            out = out + sublayer(x, last=last, opening=opening)
        return out

    def _constant_at(self, pos: int, last: bool, start: int) -> Tensor:
        """The constant's rows for `pos` positions from `start`, or for the last position."""
        assert self.constant is not None
        if self.constant.ndim == 1:
            return self.constant
        return self.constant[-1] if last else self.constant[start : start + pos]


def run_to_last(steps: Sequence[Step], x: Tensor, *, opening: Tensor | None = None) -> Tensor:
    """The last position's residual after some steps: (batch, pos, d_model) -> (batch, d_model).

    From the last step that attends on, only the last position is computed; where none attends, x may
    hold the last position alone. `opening` is what precedes x in every prompt, (1, opening, d_model).
    """
    reads_all = max((index for index, step in enumerate(steps) if step.attends), default=-1)
    for index, step in enumerate(steps):
        last = index >= reads_all
        x, opening = step(x, last=last, opening=opening), None if last or opening is None else step(opening)
    return x[:, -1]


def _causal_mask(pos: int, opening: int, device: torch.device) -> Tensor:
    """Which of opening + pos positions each of the last pos may read: (pos, opening + pos) bool."""
    return torch.ones(pos, opening + pos, dtype=torch.bool, device=device).tril(opening)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight.T, bias)
