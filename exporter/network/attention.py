"""Causal self-attention over a subset of a layer's heads, and the site of these heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.circuit import Circuit, Head
from exporter.network.norm import Norm, affine, freeze
from exporter.network.positions import Positions
from exporter.network.sites import Site


class Attention(nn.Module):
    """Causal self-attention over a subset of a layer's query heads; `heads` are their indices in the dense model.

    Grouped-query attention (Ainslie et al., arXiv 2305.13245): query head h reads key/value head h // group. Only
    key/value heads that a query head here reads are held, in ascending order.
    W_Q: (d_model, head * d_head). W_K, W_V: (d_model, kv_head * d_head). W_O: (head * d_head, d_model). b_Q, b_K,
    b_V, b_O: (out,) of the weight of the same letter, or None. q_norm, k_norm: (d_head,), the gains of RMSNorms over
    each query and key, or None.
    """

    kind = "attention"
    letter = "a"
    attends = True
    out_bias_name = "b_O"
    out_weight_name = "W_O"
    inputs = (("W_Q", "b_Q"), ("W_K", "b_K"), ("W_V", "b_V"))
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
    def tensors(self) -> dict[str, Tensor | None]:
        """The sublayer's own tensors by name, without those of its norm."""
        return {name: getattr(self, name) for name in self.tensor_names}

    @property
    def name(self) -> str:
        """The sublayer's short name, such as `a3` for the attention of layer 3."""
        return f"{self.letter}{self.layer}"

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.W_Q.shape[1] // len(self.heads)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Indices, in the dense model, of the key/value heads that are held."""
        return tuple(sorted({head // self.group for head in self.heads}))

    @property
    def kv_places(self) -> list[int]:
        """For each query head, the index of its key/value head within `kv_heads`."""
        return [self.kv_heads.index(head // self.group) for head in self.heads]

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_O."""
        return self.b_O

    def z(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """The attention-weighted mean of values, of each head: x (batch, pos, d_model) to (batch, pos, head, d_head).

        With `n_last`, only for the last n_last queries: (batch, n_last, head, d_head). `opening` is the residual at the
        positions that precede x and are the same in every prompt: (1, opening, d_model).
        """
        x = self.norm(x)
        n_queries = x.shape[1] if n_last is None else n_last
        q = self._queries(x[:, -n_queries:], at.take_last(n_last))
        k, v = self.keys_values(x, at)
        if opening is not None:
            assert at.opening is not None
            shared = self.keys_values(self.norm(opening), at.opening)
            k, v = (
                torch.cat([s.expand(len(x), -1, -1, -1), own], dim=2) for s, own in zip(shared, (k, v), strict=True)
            )
        if self.group > 1:
            k, v = k[:, self.kv_places], v[:, self.kv_places]  # (batch, head, pos, d_head)
        is_causal = n_last is None and at.mask is None and opening is None
        mask = None if is_causal else at.visible(n_queries)
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=self.scale)
        return z.transpose(1, 2)  # (batch, pos, head, d_head)

    def pattern(self, x: Tensor, at: Positions) -> Tensor:
        """How much each query reads of each position: x (batch, pos, d_model) to (batch, head, query, key)."""
        x = self.norm(x)
        k = self.keys_values(x, at)[0]
        if self.group > 1:
            k = k[:, self.kv_places]  # (batch, head, pos, d_head)
        scores = self.scale * self._queries(x, at) @ k.transpose(-1, -2)  # (batch, head, query, key)
        seen = at.visible(x.shape[1])
        return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(-1)

    def _queries(self, x: Tensor, at: Positions) -> Tensor:
        """Queries of a normalised residual, (batch, pos, d_model): (batch, head, pos, d_head)."""
        q = self._split(affine(x, self.W_Q, self.b_Q), len(self.heads))
        return _rotate(_rms_norm(q, self.q_norm, self.norm.eps), at)

    def keys_values(self, x: Tensor, at: Positions) -> tuple[Tensor, Tensor]:
        """Keys and values of a normalised residual, (batch, pos, d_model): (batch, kv_head, pos, d_head) each."""
        k = self._split(affine(x, self.W_K, self.b_K), len(self.kv_heads))
        v = self._split(affine(x, self.W_V, self.b_V), len(self.kv_heads))
        return _rotate(_rms_norm(k, self.k_norm, self.norm.eps), at), v

    def _split(self, x: Tensor, n_heads: int) -> Tensor:
        x = x.unflatten(-1, (n_heads, self.d_head))  # (batch, pos, head, d_head)
        return x.transpose(1, 2)  # (batch, head, pos, d_head)

    def project(self, z: Tensor) -> Tensor:
        """The sum of the heads' outputs and b_O: z (batch, pos, head, d_head) to (batch, pos, d_model)."""
        return affine(z.flatten(-2), self.W_O, self.b_O)

    def forward(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, n_last, d_model); see `z`."""
        return self.project(self.z(x, at, n_last=n_last, opening=opening))

    def config(self) -> dict[str, Any]:
        """Settings that are not tensors, JSON-able: arguments of the constructor."""
        return {"layer": self.layer, "heads": list(self.heads), "scale": self.scale, "group": self.group}

    def rebuild(
        self, tensors: Mapping[str, Tensor | None], *, norm: Norm | None = None, scale: float | None = None
    ) -> Attention:
        """A copy with other tensors and, where given, another norm or attention scale."""
        return Attention(
            norm or self.norm,
            tensors,
            layer=self.layer,
            heads=self.heads,
            scale=self.scale if scale is None else scale,
            group=self.group,
        )

    def site_for(self, circuit: Circuit) -> Site:
        """The site whose units the circuit keeps or removes: always the heads."""
        del circuit
        return HeadSite(self)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site; the first is the one that a search over heads and MLPs uses."""
        return (HeadSite(self),)

    def count_flops(self, n_prompts: int, pos: int, length: int) -> int:
        """FLOPs of the matrix products: queries at `pos` positions, keys and values at all `length` positions."""
        queries = self.W_Q.numel() + self.W_O.numel()
        keys = self.W_K.numel() + self.W_V.numel()
        return n_prompts * (2 * pos * queries + 2 * length * keys) + self.count_pattern_flops(n_prompts, pos, length)

    def count_pattern_flops(self, n_prompts: int, pos: int, length: int) -> int:
        """Those of them that no weight takes part in: scores, and the weighted mean of values."""
        return 4 * n_prompts * pos * length * self.W_Q.shape[1]

    def count_activations(self, pos: int, length: int, share: float) -> int:
        """How many activation values are read and written for one prompt, with a `share` (0 to 1) of the heads."""
        d_model, width = self.W_Q.shape
        return 5 * length * d_model + 4 * pos * d_model + round(4 * (pos + length) * width * share)


class HeadSite(Site):
    """The query heads of an attention sublayer: activations are z, (batch, pos, head, d_head)."""

    kind = "heads"

    def __init__(self, attention: Attention) -> None:
        super().__init__(attention.layer, attention.heads)
        self.attention = attention

    @property
    def rows_by_head(self) -> Tensor:
        """W_O by head: (head, d_head, d_model)."""
        rows: Tensor = self.attention.W_O.unflatten(0, (len(self.units), -1))
        return rows

    @property
    def bias(self) -> Tensor | None:
        """b_O."""
        return self.attention.b_O

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(head, d_head)."""
        return (len(self.units), self.attention.d_head)

    def component(self, unit: int) -> Head:
        """The head."""
        return Head(self.layer, unit)

    def kept(self, circuit: Circuit) -> tuple[int, ...]:
        """The heads that the circuit keeps, ascending."""
        return circuit.heads_of(self.layer)

    def read(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """z: (batch, pos, head, d_head)."""
        return self.attention.z(x, at, n_last=n_last, opening=opening)

    def project(self, activations: Tensor) -> Tensor:
        """The sum of the heads' outputs and b_O: (batch, pos, d_model)."""
        return self.attention.project(activations)

    def change(self, unit: int, activations: Tensor, table: Tensor, at: Positions) -> Tensor:
        """(replacement of z - z) @ W_O of one head: (batch, pos, d_model)."""
        head = self.units.index(unit)
        return (at.pick(table[:, head]) - activations[:, :, head]) @ self.rows_by_head[head]

    def contribution(self, units: tuple[int, ...], table: Tensor) -> Tensor:
        """z @ W_O, summed over the given heads: (pos or 1, d_model) float64."""
        heads = [self.units.index(unit) for unit in units]
        W_O = self.rows_by_head[heads].double()
        return torch.einsum("phd,hdm->pm", table[:, heads].to(W_O), W_O)

    def keep(self, units: tuple[int, ...]) -> Attention:
        """The sublayer with these query heads only, and the key/value heads that they read."""
        attention = self.attention
        if units == attention.heads:
            return attention
        n_heads, n_kv = len(self.units), len(attention.kv_heads)
        queries = [self.units.index(unit) for unit in units]
        keys = sorted({attention.kv_heads.index(unit // attention.group) for unit in units})

        def columns(name: str, n: int, index: list[int]) -> Tensor | None:  # (..., chosen head * d_head)
            tensor = getattr(attention, name)
            return None if tensor is None else tensor.unflatten(-1, (n, -1))[..., index, :].flatten(-2)

        tensors = attention.tensors | {name: columns(name, n_heads, queries) for name in ("W_Q", "b_Q")}
        tensors |= {name: columns(name, n_kv, keys) for name in ("W_K", "W_V", "b_K", "b_V")}
        tensors["W_O"] = self.rows_by_head[queries].flatten(0, 1)  # (head * d_head, d_model)
        return Attention(
            attention.norm, tensors, layer=self.layer, heads=units, scale=attention.scale, group=attention.group
        )


def _rotate(x: Tensor, at: Positions) -> Tensor:
    """Rotary embedding of the first n_rotary dimensions of (batch, head, pos, d_head).

    Dimension i is paired with i + n_rotary / 2.
    """
    if at.rotary is None:
        return x
    cos, sin = (part.to(x.dtype) for part in at.rotary)  # (batch or 1, 1, pos, n_rotary)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else functional.rms_norm(x, x.shape[-1:], weight, eps)
