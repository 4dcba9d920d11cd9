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
from torch import Tensor

from exporter.graph.attention import AttentionAuthor
from exporter.graph.inputs import BATCH
from exporter.graph.options import GraphOptions
from exporter.graph.scope import emit_scope
from exporter.network.feed_forward import FeedForward
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.network.step import Step, find_last_attending
from exporter.rewrite.folds import merge_step
from exporter.rewrite.vocabulary import cut_embedding, cut_unembedding


class GraphAuthor(AttentionAuthor):
    """Emits the nodes of one folded model, in order. Names start with the sublayer's, such as `a3.scores`."""

    def __init__(self, model: CircuitModel, options: GraphOptions) -> None:
        super().__init__(model, options)
        self.trim_at = len(model.steps) if options.logits == "all" else find_last_attending(model.steps)

    def author(self, scope: Scope | None = None) -> ir.Graph:
        """The whole graph, with the guard of a scope."""
        x = self.embed_tokens()
        for index, step in enumerate(self.model.steps):
            x = self.step(index, step, x)
        self.keep_idle_past()
        self.outputs += emit_scope(self, x, scope, last=self.is_trimmed(len(self.model.steps) - 1))
        logits = self.unembed(x)
        answers = [self.answer_ids()] if self.options.logits == "answers" else []
        return ir.Graph(
            self.inputs,
            [logits, *self.presents, *answers, *self.outputs],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": self.options.opset, **({"com.microsoft": 1} if self.options.target == "ort" else {})},
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
        x = self.embed(W_E, self.valid_ids(ids) if vocabulary is None else ids, "W_E")
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
            rows.name, rows.type, rows.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape([BATCH, n])
            return rows
        pos: str | int = 1
        if self.options.logits != "all":
            shape = self.integers(-1, 1, n)
        elif self.length is not None:
            pos, shape = self.length, self.integers(-1, self.length, n)
        else:
            batch_pos = self.op("Shape", self.input_ids, name="logits.batch_pos")
            pos, shape = self.pos, self.op("Concat", batch_pos, self.integers(n), name="logits.shape", axis=0)
        logits = self.op("Reshape", rows, shape, name="logits")
        logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([BATCH, pos, n])
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
