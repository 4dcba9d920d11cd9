"""Attention in a graph: queries, keys and values of the heads that are left, of one call or of earlier ones too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporter.graph.inputs import BATCH, TOTAL
from exporter.graph.options import GraphOptions
from exporter.graph.positions import PositionAuthor
from exporter.network.attention import Attention
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm


class AttentionAuthor(PositionAuthor):
    """Emits attention sublayers."""

    def __init__(self, model: CircuitModel, options: GraphOptions) -> None:
        super().__init__(model, options)
        self.d_model = model.W_E.shape[1]
        self.presents: list[ir.Value] = []
        self.opening = model.keys_values(options.opening, length=self.length) if self.length and self.start else {}

    def attention(self, attention: Attention, x: ir.Value, bias: Tensor | None, last: bool) -> ir.Value:
        """The attention's output: (batch, pos, d_model), or at the `last` position (batch, d_model)."""
        assert attention.b_V is None and attention.scale == 1.0  # `fold_model` folds both
        name = attention.name
        x = self.norm(x, attention.norm, name, width=self.d_model)
        z = self.read_last(attention, x, name) if last else self.read_all(attention, x, name)
        return self.linear(z, attention.W_O, bias, f"{name}.out", rows=last)

    def read_all(self, attention: Attention, x: ir.Value, name: str) -> ir.Value:
        """The heads' z (see `Attention.z`) at every position: (batch, pos, head * d_head)."""
        q, k, v = self.heads_of(attention, x, name, queries=True)
        k, v = self.keys_values(attention, k, v, name)
        single = self.is_single(attention)
        z = self.attend(q, k, v, self.mask(), name, single=single)  # (batch, head, pos, d_head)
        if single:
            return z
        z = self.op("Transpose", z, name=f"{name}.z_by_pos", perm=[0, 2, 1, 3])  # (batch, pos, head, d_head)
        return self.op("Reshape", z, self.integers(0, 0, attention.W_O.shape[0]), name=f"{name}.z_flat")

    def read_last(self, attention: Attention, x: ir.Value, name: str) -> ir.Value:
        """The heads' z (see `Attention.z`) at the last position: (batch, head * d_head)."""
        n_heads, d_head, single = len(attention.heads), attention.d_head, self.is_single(attention)
        k, v = self.heads_of(attention, x, name, queries=False)
        k, v = self.keys_values(attention, k, v, name)
        q = self.linear(self.take_last(x, axis=1), attention.W_Q, attention.b_Q, f"{name}.q_flat", rows=True)
        shape = self.integers(0, 1, d_head) if single else self.integers(0, n_heads, 1, d_head)
        q = self.op("Reshape", q, shape, name=f"{name}.q_by_head")
        q = self.turned(attention, q, "q", name, last=True)  # (batch, head, 1, d_head)
        z = self.attend(q, k, v, self.last_mask(), name, single=single)  # (batch, head, 1, d_head)
        return self.op("Reshape", z, self.integers(0, n_heads * d_head), name=f"{name}.z_flat")

    def attend(
        self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, name: str, *, single: bool
    ) -> ir.Value:
        """The attention-weighted mean of values: (batch, head, query, d_head), of k and v (batch, head, key, d_head).

        Products are MatMul, which ONNX Runtime fuses with the Transpose. Its Einsum ends the process on an empty batch.
        """
        k = self.op("Transpose", k, name=f"{name}.k_transposed", perm=[0, 2, 1] if single else [0, 1, 3, 2])
        scores = self.op("MatMul", q, k, name=f"{name}.scores")  # (batch, head, query, key)
        if mask is not None:
            scores = self.op("Add", scores, mask, name=f"{name}.masked")
        pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)
        return self.op("MatMul", pattern, v, name=f"{name}.z")

    def is_single(self, attention: Attention) -> bool:
        """Whether the graph omits the head axis, in all shapes below: one head, and prompts of fixed length."""
        return len(attention.heads) == 1 and self.length is not None

    def heads_of(self, attention: Attention, x: ir.Value, name: str, *, queries: bool) -> list[ir.Value]:
        """Queries (with `queries`), keys and values, rotated, of one product: (batch, head, pos, d_head) each."""
        n_heads, n_kv, d_head = len(attention.heads), len(attention.kv_heads), attention.d_head
        parts = [(attention.W_K, attention.b_K), (attention.W_V, None)]
        counts = {"k": n_kv, "v": n_kv}
        if queries:
            parts, counts = [(attention.W_Q, attention.b_Q), *parts], {"q": n_heads, **counts}
        bias = None
        if any(b is not None for _, b in parts):
            bias = torch.cat([w.new_zeros(w.shape[1]) if b is None else b for w, b in parts])
        joint = "".join(counts)
        y = self.linear(x, torch.cat([w for w, _ in parts], dim=1), bias, f"{name}.{joint}")
        if self.is_single(attention):
            found = self.split(y, {f"{name}.{part}": d_head for part in counts}, axis=2)
            return [self.turned(attention, value, part, name) for value, part in zip(found, counts, strict=True)]
        y = self.op("Reshape", y, self.integers(0, 0, sum(counts.values()), d_head), name=f"{name}.heads")
        y = self.op("Transpose", y, name=f"{name}.by_head", perm=[0, 2, 1, 3])
        rotary = self.model.rotary
        if rotary is None or attention.q_norm is not None:
            found = self.split(y, {f"{name}.{part}": n for part, n in counts.items()}, axis=1)
            return [self.turned(attention, value, part, name) for value, part in zip(found, counts, strict=True)]
        # queries and keys have the same rotation: rotate both in one node
        y, v = self.split(y, {f"{name}.to_turn": sum(counts.values()) - n_kv, f"{name}.v": n_kv}, axis=1)
        y = self.rotate(y, rotary, d_head, name)
        return [*self.split(y, {f"{name}.q": n_heads, f"{name}.k": n_kv}, axis=1), v] if queries else [y, v]

    def turned(self, attention: Attention, x: ir.Value, part: str, name: str, *, last: bool = False) -> ir.Value:
        """Queries or keys (`part` q or k), normalised and rotated if the model does so; values (v) unchanged."""
        gain = {"q": attention.q_norm, "k": attention.k_norm, "v": None}[part]
        if gain is not None:
            x = self.norm(x, Norm(gain, eps=attention.norm.eps, rms=True), f"{name}.{part}", width=attention.d_head)
        if part == "v" or self.model.rotary is None:
            return x
        return self.rotate(x, self.model.rotary, attention.d_head, f"{name}.{part}", last=last)

    def keys_values(self, attention: Attention, k: ir.Value, v: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """Keys and values for each query head, past and opening included: (batch, head, total, d_head) each."""
        if self.form == "past":
            k, v = self.with_past(k, v, len(attention.kv_heads))
        if self.start:
            k, v = (
                self.with_opening(own, shared, f"{name}.{part}", single=self.is_single(attention))
                for own, shared, part in zip((k, v), self.opening[attention.layer], "kv", strict=True)
            )
        if attention.kv_places != list(range(len(attention.heads))):
            places = self.integers(*attention.kv_places)
            k = self.op("Gather", k, places, name=f"{name}.k_of_query", axis=1)
            v = self.op("Gather", v, places, name=f"{name}.v_of_query", axis=1)
        return k, v

    def with_opening(self, own: ir.Value, shared: Tensor, name: str, *, single: bool) -> ir.Value:
        """`own` keys or values after those of the opening, `shared` (kv_head, opening, d_head)."""
        ones = self.integers(*[1] * (2 if single else 3))
        shape = self.once(
            f"batch.{len(ones.shape or ())}.{single}",
            lambda: self.op("Concat", self.n_batch(), ones, name=f"batch.{'rows' if single else 'heads'}", axis=0),
        )
        first = self.op("Expand", self.weight(f"{name}.opening", shared if not single else shared[0]), shape,
                        name=f"{name}.opening_by_prompt")  # fmt: skip
        return self.op("Concat", first, own, name=f"{name}.all", axis=1 if single else 2)

    def with_past(self, k: ir.Value, v: ir.Value, n_kv: int) -> tuple[ir.Value, ir.Value]:
        """k and v, of n_kv heads, after the keys and values of earlier calls; the results are outputs, `present`.

        Where the inputs have more heads (`GraphOptions.optimum`), these are left out, and zeros in the outputs.
        """
        index, both = len(self.presents) // 2, []
        for kind, past, now in zip(("key", "value"), self.pasts[index], (k, v), strict=True):
            name = f"present.{index}.{kind}"
            assert past.shape is not None and isinstance(past.shape[1], int)
            if not (n_more := past.shape[1] - n_kv):
                whole = present = self.op("Concat", past, now, name=name, axis=2)
            else:
                of_heads = self.integers(0), self.integers(n_kv), self.integers(1)
                own = self.op("Slice", past, *of_heads, name=f"{past.name}.own")
                whole = self.op("Concat", own, now, name=f"{name}.own", axis=2)
                present = self.op("Pad", whole, self.integers(*[0] * 5, n_more, 0, 0), name=name)
            present.type, present.shape = past.type, ir.Shape([BATCH, past.shape[1], TOTAL, past.shape[3]])
            self.presents.append(present)
            both.append(whole)
        return both[0], both[1]

    def keep_idle_past(self) -> None:
        """The outputs `present` of a past that no attention is left to read: zeros for the tokens of this call."""
        for key, _ in self.pasts[len(self.presents) // 2 :]:
            assert key.shape is not None
            n_kv, d_head = key.shape[1], key.shape[3]
            assert isinstance(n_kv, int) and isinstance(d_head, int)
            sizes = self.n_batch(), self.integers(n_kv), self.n_pos(), self.integers(d_head)
            shape = self.op("Concat", *sizes, name="idle.shape", axis=0)
            zero = self.number("idle.zero", np.zeros((1, 1, 1, 1), np.float32))
            zeros = self.op("Expand", zero, shape, name="idle.zeros")
            self.with_past(zeros, zeros, n_kv)
