"""A graph's inputs: token ids, and which of them a file with a part of the vocabulary knows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.graph.guards import IN_VOCABULARY
from exporter.graph.nodes import NodeAuthor, make_value
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel


class InputAuthor(NodeAuthor):
    """Emits the inputs, and nodes on the token ids, each once, when first needed."""

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

    def n_pos(self) -> ir.Value:
        """The size of input_ids' axis 1, pos: (1,) int64."""
        return self.once("pos", lambda: self.op("Shape", self.input_ids, name="pos", start=1, end=2))

    def last_rows(self, x: ir.Value, name: str, *, axis: int) -> ir.Value:
        """The last pos entries of x along an axis, pos being the number of tokens in input_ids."""
        start = self.once("pos.negative", lambda: self.op("Neg", self.n_pos(), name="pos.negative"))
        return self.op("Slice", x, start, self.integers(2**62), self.integers(axis), name=name)
