"""A graph's inputs and what is derived from them: token ids, positions, attention masks, rotary embeddings.

For prompts of one fixed length, positions, masks and rotary embeddings are constants; else nodes compute them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporter.graph.guards import IN_VOCABULARY
from exporter.graph.nodes import NodeAuthor, make_value
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.network.positions import Rotary


class InputAuthor(NodeAuthor):
    """Emits the inputs, and the nodes that sublayers share (positions, masks), each once, when first needed."""

    def __init__(self, model: CircuitModel, options: GraphOptions) -> None:
        super().__init__(options)
        self.model = model
        self.form = options.form
        self.length = (model.length or options.length) if self.form == "plain" else None  # tokens of every prompt
        self.start = len(options.opening)  # the first position that the graph computes
        pos: str | int = self.length or "sequence"
        self.input_ids = make_value("input_ids", ir.DataType.INT64, ["batch", pos])
        self.inputs = [self.input_ids]
        if self.form != "plain":
            total = "sequence" if self.form == "masked" else "total_sequence"
            self.attention_mask = make_value("attention_mask", ir.DataType.INT64, ["batch", total])
            self.inputs.append(self.attention_mask)
        self.outputs: list[ir.Value] = []  # beside the logits

    # --- tokens

    def from_start(self, x: ir.Value) -> ir.Value:
        """x without the opening's positions, which are on axis 1."""
        name = f"{x.name}.after_opening"
        return self.op("Slice", x, self.integers(self.start), self.integers(2**62), self.integers(1), name=name)

    def known_ids(self) -> ir.Value:
        """Each token's row in the embeddings of `options.vocabulary`: (batch, pos).

        Also emits the guard `in_vocabulary`. A token outside the vocabulary gets the last row.
        """
        vocabulary = self.options.vocabulary or ()
        unknown = len(vocabulary)
        places = np.full(len(self.model.W_E) + 1, unknown, np.int32)  # last entry: ids out of range
        places[list(vocabulary)] = np.arange(unknown)
        ids = self.ids_within()
        row = self.op("Gather", self.constant("vocabulary.rows", places), ids, name="ids.rows")  # (batch, pos)
        if self.form != "plain":  # padding may hold any id: give it row 0, which the guard accepts
            real = self.attention_mask
            real = real if self.form == "masked" else self.last_rows(real, "mask.own", axis=1)
            real = self.op("Cast", real, name="ids.real", to=ir.DataType.BOOL)
            row = self.op("Where", real, row, self.row_number(0), name="ids.real_rows")
        highest = self.op("ReduceMax", row, self.integers(1), name="ids.highest", keepdims=0)  # (batch,)
        fits = self.op("Less", highest, self.row_number(unknown), name="ids.known")
        if self.start:
            fits = self.op("And", fits, self.is_opening(), name="ids.fit")
        fits.name = IN_VOCABULARY
        fits.type, fits.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape(["batch"])
        self.outputs.append(fits)
        return self.op("Min", row, self.row_number(unknown - 1), name="ids.kept")

    def ids_within(self) -> ir.Value:
        """Token ids clipped to -1 and the model's vocabulary size, the marks of invalid ids: (batch, pos) int64.

        Clipped in float32, which holds every valid id exactly: ONNX Runtime 1.31 compares int64 wrongly near 2**31.
        """

        def make() -> ir.Value:
            low, high = (self.constant(f"ids.{v}", np.array(v, np.float32)) for v in (-1, len(self.model.W_E)))
            ids = self.op("Cast", self.input_ids, name="ids.float", to=ir.DataType.FLOAT)
            ids = self.op("Clip", ids, low, high, name="ids.clipped")
            return self.op("Cast", ids, name="ids.within", to=ir.DataType.INT64)

        return self.once("ids.within", make)

    def row_number(self, row: int) -> ir.Value:
        """A row number of the kept embeddings as an int32 initializer."""
        return self.constant(f"row.{row}", np.array(row, np.int32))

    def is_opening(self) -> ir.Value:
        """Whether each prompt starts with the tokens of `options.opening`: (batch,) bool."""
        first = (self.integers(0), self.integers(self.start), self.integers(1))
        apart = self.op("Slice", self.ids_within(), *first, name="opening.ids")  # (batch, opening)
        apart = self.op("Sub", apart, self.integers(*self.options.opening), name="opening.apart")
        apart = self.op("Abs", apart, name="opening.distance")
        apart = self.op("ReduceMax", apart, self.integers(1), name="opening.most", keepdims=0)  # (batch,)
        return self.op("Equal", apart, self.scalar(0), name="opening.same")

    # --- positions

    def n_pos(self) -> ir.Value:
        """The size of input_ids' axis 1, pos: (1,) int64."""
        return self.once("pos", lambda: self.op("Shape", self.input_ids, name="pos", start=1, end=2))

    def position_ids(self) -> ir.Value:
        """Each token's position, 0 for a prompt's first token: (1, pos), or (batch, pos) with an attention_mask."""

        def make() -> ir.Value:
            if self.form == "plain":
                pos = self.op("Squeeze", self.n_pos(), name="position.count")  # ()
                along = self.op("Range", self.scalar(0), pos, self.scalar(1), name="position.range")
                return self.op("Unsqueeze", along, self.integers(0), name="position.ids")  # (1, pos)
            count = self.op("CumSum", self.attention_mask, self.scalar(1), name="position.count")
            ids = self.op("Sub", count, self.scalar(1), name="position.from_zero")
            ids = self.op("Max", ids, self.scalar(0), name="position.ids")  # (batch, total)
            return ids if self.form == "masked" else self.last_rows(ids, "position.own", axis=1)

        return self.once("position_ids", make)

    def last_rows(self, x: ir.Value, name: str, *, axis: int) -> ir.Value:
        """The last pos entries of x along an axis, pos being the number of tokens in input_ids."""
        start = self.once("pos.negative", lambda: self.op("Neg", self.n_pos(), name="pos.negative"))
        return self.op("Slice", x, start, self.integers(2**62), self.integers(axis), name=name)

    def rows(self, name: str, table: Tensor, *, align: str) -> ir.Value:
        """Rows of a table by position for the tokens of this call: (pos, d_model), or (batch, pos, d_model)."""
        if self.length is not None:
            return self.weight(name, table[self.start : self.length])
        value = self.weight(name, table)
        if align == "right":
            return self.last_rows(value, f"{name}.rows", axis=0)
        if self.form == "plain":
            return self.op("Slice", value, self.integers(0), self.n_pos(), self.integers(0), name=f"{name}.rows")
        return self.op("Gather", value, self.position_ids(), name=f"{name}.rows")  # (batch, pos, d_model)

    def last_row(self, name: str, table: Tensor, *, align: str) -> ir.Value | Tensor:
        """A table's row at the last position: a Tensor (d_model,) if fixed at export, else (batch or 1, d_model)."""
        if self.length is not None:
            return table[self.length - 1]
        if align == "right":
            return table[-1]
        last = self.take_last(self.position_ids(), axis=1)  # (batch or 1,)
        return self.op("Gather", self.weight(name, table), last, name=f"{name}.last_row")

    def mask(self) -> ir.Value | None:
        """The additive attention mask, 0 or minus infinity; None where the only query sees every position.

        (pos, total), or (batch, 1, pos, total) with an attention_mask.
        """
        if self.length is not None and self.length - self.start == 1:
            return None
        if self.length is not None:
            hidden = np.triu(np.full((self.length, self.length), -np.inf, np.float32), 1)
            return self.number("mask", hidden[self.start :])
        return self.once("mask", self.free_mask)

    def free_mask(self) -> ir.Value:
        """The attention mask for prompts of free length: (pos, total), or (batch, 1, pos, total) with padding."""
        pos = self.op("Squeeze", self.n_pos(), name="mask.pos")  # ()
        if self.form == "past":
            total = self.op("Shape", self.attention_mask, name="mask.total_1", start=1, end=2)
            total = self.op("Squeeze", total, name="mask.total")
            first = self.op("Sub", total, pos, name="mask.first")
        else:
            total, first = pos, self.scalar(0)
        key = self.op("Range", self.scalar(0), total, self.scalar(1), name="mask.key")  # (total,)
        query = self.op("Range", first, total, self.scalar(1), name="mask.query_1")
        query = self.op("Unsqueeze", query, self.integers(1), name="mask.query")  # (pos, 1)
        seen = self.op("GreaterOrEqual", query, key, name="mask.seen")  # (pos, total)
        if self.form != "plain":
            real = self.op("Unsqueeze", self.real_tokens(), self.integers(1, 2), name="mask.real")
            seen = self.op("And", seen, real, name="mask.seen_real")  # (batch, 1, pos, total)
            # a padding position sees itself: a softmax over no position is NaN
            seen = self.op("Or", seen, self.op("Equal", query, key, name="mask.self"), name="mask.seen_any")
        return self.hide(seen, "mask")

    def last_mask(self) -> ir.Value | None:
        """The mask of the last position, which sees all but padding: (batch, 1, total); None in the form "plain"."""
        if self.form == "plain":
            return None

        def make() -> ir.Value:
            real = self.op("Unsqueeze", self.real_tokens(), self.integers(1), name="last_mask.real")
            return self.hide(real, "last_mask")

        return self.once("last_mask", make)

    def real_tokens(self) -> ir.Value:
        """attention_mask as bool, False at padding: (batch, total)."""
        name = "mask.tokens"
        return self.once(name, lambda: self.op("Cast", self.attention_mask, name=name, to=ir.DataType.BOOL))

    def hide(self, seen: ir.Value, name: str) -> ir.Value:
        """0 where `seen`, else minus infinity."""
        shown, hidden = (self.number(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, -np.inf))
        return self.op("Where", seen, shown, hidden, name=name)

    def rotate(self, x: ir.Value, rotary: Rotary, d_head: int, name: str, *, last: bool = False) -> ir.Value:
        """Rotary embedding of (batch, head, pos, d_head), or at the `last` position of (batch, head, d_head).

        Without a head axis for a single head. x cos + (x R) sin, R rotating each pair of dimensions by 90 degrees.
        """
        half = len(rotary.inv_freq)
        quarter_turn = np.zeros((d_head, d_head), np.float32)
        quarter_turn[range(half, 2 * half), range(half)] = -1
        quarter_turn[range(half), range(half, 2 * half)] = 1
        turned = self.op("MatMul", x, self.number(f"rotary.turn{d_head}", quarter_turn), name=f"{name}.turned")
        cos, sin = self.cos_sin(rotary, d_head, last=last)
        turned = self.op("Mul", turned, sin, name=f"{name}.sin")
        return self.op("Add", self.op("Mul", x, cos, name=f"{name}.cos"), turned, name=f"{name}.rotated")

    def cos_sin(self, rotary: Rotary, d_head: int, *, last: bool) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine for all dimensions of a head, 1 and 0 for those without rotation.

        (pos, d_head) for fixed length, else (batch or 1, 1, pos, d_head); for the `last` position (1, d_head), or
        (batch or 1, 1, d_head).
        """
        rest = d_head - 2 * len(rotary.inv_freq)
        if self.length is not None:
            ids = torch.arange(self.length - 1 if last else self.start, self.length)[None]
            cos, sin = (part[0, 0] for part in rotary(ids))  # (pos, n_rotary)
            cos = torch.cat([cos, cos.new_ones(len(cos), rest)], 1)
            sin = torch.cat([sin, sin.new_zeros(len(sin), rest)], 1)
            where = "last" if last else "all"
            return self.weight(f"rotary.cos.{where}", cos), self.weight(f"rotary.sin.{where}", sin)

        def make(function: str) -> ir.Value:
            inv_freq = torch.cat([rotary.inv_freq.float(), rotary.inv_freq.float(), torch.zeros(rest)])

            def turn() -> ir.Value:
                ids = self.op("Cast", self.position_ids(), name="rotary.float", to=ir.DataType.FLOAT)
                ids = self.op("Unsqueeze", ids, self.integers(1, 3), name="rotary.ids")  # (batch or 1, 1, pos, 1)
                frequencies = self.constant("rotary.inv_freq", inv_freq.numpy())
                return self.op("Mul", ids, frequencies, name="rotary.angles")

            name = f"rotary.{function.lower()}"
            value = self.op(function, self.once("rotary.angles", turn), name=name)
            if rotary.scale != 1.0:
                scale = torch.cat([torch.full((d_head - rest,), rotary.scale), torch.ones(rest)])
                value = self.op("Mul", value, self.constant("rotary.scale", scale.numpy()), name=f"{name}.scaled")
            return self.from_float(value, f"{name}.half")

        cos, sin = self.once("rotary.cos", lambda: make("Cos")), self.once("rotary.sin", lambda: make("Sin"))
        return (self.take_last(cos, axis=2), self.take_last(sin, axis=2)) if last else (cos, sin)
