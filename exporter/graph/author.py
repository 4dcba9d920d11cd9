"""The ONNX graph of a CircuitModel, written node by node.

It is authored rather than traced: shapes are known in advance, each layer has its own head count, and a small graph
matters, because at batch 1 the nodes cost more than the arithmetic. Operators are standard ones, except with target
"ort". Tied embedding and unembedding stay one tensor, unless one of them is cut.

A graph has one of three forms. *Plain*: prompts without padding, input_ids alone. *Masked*: prompts padded on the left,
with their attention_mask. *With past*: masked, and each attention sublayer reads the keys and values of earlier calls
(`past_key_values.N.key`) and returns them with its own (`present.N.key`); N counts the attention sublayers left.

Where only the last position's logits are asked for, the residual is (batch, pos, d_model) up to the last step that
attends; that step and later ones compute (batch, d_model), the last position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporter.graph.inputs import InputAuthor
from exporter.graph.nodes import make_value
from exporter.graph.options import GraphOptions
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.step import Step, find_last_attending
from exporter.rewrite.folds import merge_step
from exporter.rewrite.vocabulary import cut_embedding, cut_unembedding

OPSET = 20


class GraphAuthor(InputAuthor):
    """Emits the nodes of one folded model, in order. Names start with the sublayer's, such as `a3.scores`."""

    def __init__(self, model: CircuitModel, options: GraphOptions) -> None:
        super().__init__(model, options)
        self.d_model = model.W_E.shape[1]
        self.trim_at = len(model.steps) if options.logits == "all" else find_last_attending(model.steps)
        self.presents: list[ir.Value] = []
        self.opening = model.keys_values(options.opening, length=self.length) if self.length and self.start else {}

    def author(self) -> ir.Graph:
        """The whole graph."""
        x = self.embed_tokens()
        for index, step in enumerate(self.model.steps):
            x = self.step(index, step, x)
        logits = self.unembed(x)
        answers = [self.answer_ids()] if self.options.logits == "answers" else []
        return ir.Graph(
            self.inputs,
            [logits, *self.presents, *answers, *self.outputs],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, **({"com.microsoft": 1} if self.options.target == "ort" else {})},
            name="circuit",
        )

    def is_trimmed(self, index: int) -> bool:
        """Whether the residual after step `index` holds the last position only."""
        return index >= self.trim_at

    # --- tokens in

    def embed_tokens(self) -> ir.Value:
        """The residual before the first step: (batch, pos, d_model), or (batch, d_model) where nothing attends."""
        ids = self.input_ids if self.options.vocabulary is None else self.known_ids()
        trimmed = self.is_trimmed(-1)
        if trimmed:
            ids = self.take_last(ids, axis=1)  # (batch,)
        elif self.start:
            ids = self.from_start(ids)
        vocabulary = self.options.vocabulary
        W_E = self.model.W_E if vocabulary is None else cut_embedding(self.model, vocabulary)
        x = self.embed(W_E, ids, "W_E")
        if self.model.W_pos is None:
            return x
        rows = self.last_row if trimmed else self.rows
        found = rows("W_pos", self.model.W_pos, align="left")
        return self.op("Add", x, found if isinstance(found, ir.Value) else self.weight("W_pos.last", found), name="x0")

    # --- sublayers

    def step(self, index: int, step: Step, x: ir.Value) -> ir.Value:
        """The residual after one step: (batch, pos, d_model), or of the last position, (batch, d_model)."""
        trimmed = self.is_trimmed(index)
        own = out = self.take_last(x, axis=1) if index == self.trim_at else x
        if step.constant is not None:
            name = f"step{index}.constant"
            found: ir.Value | Tensor = step.constant
            if step.constant.ndim == 2:
                find = self.last_row if trimmed else self.rows
                found = find(name, step.constant, align=self.model.align)
            if isinstance(found, Tensor) and len(step.sublayers):
                step = merge_step(Step(list(step.sublayers), found), self.model.W_E.dtype)
            else:
                value = self.weight(name, found) if isinstance(found, Tensor) else found
                out = self.op("Add", out, value, name=f"step{index}.add")
        for sublayer in step.sublayers:
            bias = sublayer.out_bias
            added = EMITTERS[sublayer.kind](self, sublayer, x if sublayer.attends else own, bias, trimmed)
            out = self.op("Add", out, added, name=f"{sublayer.name}.residual")
        return out

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
        k = self.op("Transpose", k, name=f"{name}.k_transposed", perm=[0, 2, 1] if single else [0, 1, 3, 2])
        scores = self.op("MatMul", q, k, name=f"{name}.scores")  # (batch, head, pos, total)
        mask = self.mask()
        if mask is not None:
            scores = self.op("Add", scores, mask, name=f"{name}.masked")
        pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)
        z = self.op("MatMul", pattern, v, name=f"{name}.z")  # (batch, head, pos, d_head)
        if single:
            return z
        z = self.op("Transpose", z, name=f"{name}.z_by_pos", perm=[0, 2, 1, 3])  # (batch, pos, head, d_head)
        return self.op("Reshape", z, self.integers(0, 0, attention.W_O.shape[0]), name=f"{name}.z_flat")

    def read_last(self, attention: Attention, x: ir.Value, name: str) -> ir.Value:
        """The heads' z (see `Attention.z`) at the last position: (batch, head * d_head)."""
        n_heads, d_head = len(attention.heads), attention.d_head
        k, v = self.heads_of(attention, x, name, queries=False)
        k, v = self.keys_values(attention, k, v, name)
        q = self.linear(self.take_last(x, axis=1), attention.W_Q, attention.b_Q, f"{name}.q_flat", rows=True)
        if self.is_single(attention):
            q = self.turned(attention, q, "q", name, last=True)
            scores = self.contract("bd,bkd->bk", q, k, f"{name}.scores")
            pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)
            return self.contract("bk,bkd->bd", pattern, v, f"{name}.z")
        q = self.op("Reshape", q, self.integers(0, n_heads, d_head), name=f"{name}.q_by_head")
        q = self.turned(attention, q, "q", name, last=True)  # (batch, head, d_head)
        scores = self.contract("bhd,bhkd->bhk", q, k, f"{name}.scores")
        mask = self.last_mask()
        if mask is not None:
            scores = self.op("Add", scores, mask, name=f"{name}.masked")
        pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)  # (batch, head, total)
        z = self.contract("bhk,bhkd->bhd", pattern, v, f"{name}.z_by_head")
        return self.op("Reshape", z, self.integers(0, n_heads * d_head), name=f"{name}.z")

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
            k, v = self.with_past(k, v, len(attention.kv_heads), attention.d_head, name)
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
        batch = self.once("batch", lambda: self.op("Shape", self.input_ids, name="batch", start=0, end=1))
        ones = self.integers(*[1] * (2 if single else 3))
        shape = self.once(
            f"batch.{len(ones.shape or ())}.{single}",
            lambda: self.op("Concat", batch, ones, name=f"batch.{'rows' if single else 'heads'}", axis=0),
        )
        first = self.op("Expand", self.weight(f"{name}.opening", shared if not single else shared[0]), shape,
                        name=f"{name}.opening_by_prompt")  # fmt: skip
        return self.op("Concat", first, own, name=f"{name}.all", axis=1 if single else 2)

    def with_past(self, k: ir.Value, v: ir.Value, n_kv: int, d_head: int, name: str) -> tuple[ir.Value, ir.Value]:
        """k and v after the keys and values of earlier calls; the results are also outputs, `present`."""
        index, both = len(self.presents) // 2, []
        dtype = ir.DataType.from_numpy(np.dtype(self.dtype))
        for kind, now in (("key", k), ("value", v)):
            past = make_value(f"past_key_values.{index}.{kind}", dtype, ["batch", n_kv, "past_sequence", d_head])
            self.inputs.append(past)
            present = self.op("Concat", past, now, name=f"present.{index}.{kind}", axis=2)
            present.type, present.shape = past.type, ir.Shape(["batch", n_kv, "total_sequence", d_head])
            self.presents.append(present)
            both.append(present)
        return both[0], both[1]

    def mlp(self, mlp: FeedForward, x: ir.Value, bias: Tensor | None, rows: bool) -> ir.Value:
        """The MLP's output, in the shape of x; `rows`: x is (batch, d_model), the last position."""
        name = mlp.name
        x = self.norm(x, mlp.norm, name, width=self.d_model)
        hidden = self.linear(x, mlp.W_in, mlp.b_in, f"{name}.in", rows=rows)  # (..., d_mlp)
        if mlp.W_gate is None:
            hidden = self.activation(hidden, mlp.activation, name)
        else:
            gate = self.linear(x, mlp.W_gate, mlp.b_gate, f"{name}.gate", rows=rows)
            gate = self.activation(gate, mlp.activation, name)
            hidden = self.op("Mul", gate, hidden, name=f"{name}.gated")
        return self.linear(hidden, mlp.W_out, bias, f"{name}.out", rows=rows)

    # --- logits out

    def unembed(self, x: ir.Value) -> ir.Value:
        """Logits at every position, (batch, pos, vocab), or at the last one, (batch, 1, vocab or answer)."""
        norm, W_U, bias = self.model.final_norm, self.model.W_U.detach(), None
        if self.options.answers_only:  # a copy, so that it can take in the norm's gain and bias
            norm, W_U, bias = cut_unembedding(self.model, self.options.answer_ids)
        if not self.is_trimmed(len(self.model.steps) - 1):
            x = self.op("Reshape", x, self.integers(-1, self.d_model), name="final.rows")  # (batch * pos, d_model)
        x = self.norm(x, norm, "final", width=self.d_model)
        if self.is_int8("unembed"):
            rows = self.linear(x, W_U.T, bias, "unembed", rows=True)
        else:  # Gemm with transB takes (vocab, d_model) as it is stored: no transposed copy
            is_cut = self.options.vocabulary is not None or self.options.answers_only
            is_shared = self.model.tied and not is_cut and not self.is_int8("W_E")
            added = () if bias is None else (self.weight("unembed.bias", bias),)
            W = self.weight("W_E" if is_shared else "W_U", W_U)
            rows = self.op("Gemm", x, W, *added, name="unembed", transB=1)  # (row, vocab)
        if self.is_half:
            rows = self.op("Cast", rows, name="unembed.float", to=ir.DataType.FLOAT)
        return self.shape_logits(rows, len(W_U))

    def shape_logits(self, rows: ir.Value, n: int) -> ir.Value:
        """The output `logits`: rows of logits, (row, n), as (batch, pos or 1, n), or as they are for classes."""
        if self.options.logits == "classes":
            rows.name, rows.type, rows.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", n])
            return rows
        pos: str | int = 1
        if self.options.logits != "all":
            shape = self.integers(-1, 1, n)
        elif self.length is not None:
            pos, shape = self.length, self.integers(-1, self.length, n)
        else:
            batch_pos = self.op("Shape", self.input_ids, name="logits.batch_pos")
            pos, shape = "sequence", self.op("Concat", batch_pos, self.integers(n), name="logits.shape", axis=0)
        logits = self.op("Reshape", rows, shape, name="logits")
        logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", pos, n])
        return logits

    def answer_ids(self) -> ir.Value:
        """The output `answer_token_ids`, a constant: the token id of each logit, (answer,) int64."""
        ids = self.constant("answer_token_ids", np.array(self.options.answer_ids, np.int64))
        ids.type, ids.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(self.options.answer_ids)])
        return ids


EMITTERS: dict[str, Callable[[GraphAuthor, Any, ir.Value, Tensor | None, bool], ir.Value]] = {
    "attention": GraphAuthor.attention,
    "mlp": GraphAuthor.mlp,
}
"""By kind of sublayer: the method that emits it, given the sublayer, the residual, its output bias, and whether only
the last position is computed."""
