"""A graph's inputs: token ids, and which of them a file with a part of the vocabulary knows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.graph.guards import IN_VOCABULARY
from exporter.graph.nodes import NodeAuthor, make_value
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.network.step import list_attentions

# Names of the free axes, as Optimum and Transformers.js write them.
BATCH = "batch_size"
SEQUENCE = "sequence_length"  # of the tokens of this call
PAST = "past_sequence_length"  # of the tokens of earlier calls
TOTAL = f"{PAST} + {SEQUENCE}"


class InputAuthor(NodeAuthor):
    """Emits the inputs, and nodes on the token ids, each once, when first needed."""

    def __init__(self, model: CircuitModel, options: GraphOptions) -> None:
        super().__init__(options)
        self.model = model
        self.form = options.form
        self.length = (model.length or options.length) if self.form == "plain" else None  # tokens of every prompt
        self.start = len(options.opening)  # the first position that the graph computes
        # pinned where a table by position has one row, which broadcasting would repeat
        longest = min(model.max_length, model.length or model.max_length)
        self.pos: str | int = self.length or (1 if longest == 1 and self.form != "past" else SEQUENCE)
        self.input_ids = make_value("input_ids", ir.DataType.INT64, [BATCH, self.pos])
        self.inputs = [self.input_ids]
        self.pasts: list[tuple[ir.Value, ir.Value]] = []  # keys and values of earlier calls, by attention sublayer
        if self.form != "plain":
            total = self.pos if self.form == "masked" else TOTAL
            self.attention_mask = make_value("attention_mask", ir.DataType.INT64, [BATCH, total])
            self.inputs.append(self.attention_mask)
        if options.optimum:
            self.inputs.append(make_value("position_ids", ir.DataType.INT64, [BATCH, self.pos]))
        if self.form == "past":
            shapes = [(len(a.kv_heads), a.d_head) for a in list_attentions(list(model.steps))]
            if options.optimum:  # at least one layer's, as it generates with none without a past
                shapes = [max(shapes, default=(1, 1))] * max(1, len(shapes))
            for n_kv, d_head in shapes:
                self.add_past(n_kv, d_head)
        self.outputs: list[ir.Value] = []  # beside the logits

    def add_past(self, n_kv: int, d_head: int) -> None:
        """The inputs for one attention sublayer's keys and values of earlier calls."""
        index, dtype = len(self.pasts), ir.DataType.from_numpy(np.dtype(self.dtype))
        key, value = (
            make_value(f"past_key_values.{index}.{kind}", dtype, [BATCH, n_kv, PAST, d_head])
            for kind in ("key", "value")
        )
        self.pasts.append((key, value))
        self.inputs += [key, value]

    # --- sizes, and what must have them

    def n_batch(self) -> ir.Value:
        """The number of prompts: (1,) int64."""
        return self.once("batch", lambda: self.op("Shape", self.input_ids, name="batch", start=0, end=1))

    def n_past(self, among: str = "Max") -> ir.Value:
        """The number of tokens in earlier calls, the largest or smallest (`Min`) of all keys': (1,) int64."""
        shapes = {f"{key.name}.size": key for key, _ in self.pasts}
        sizes = [
            self.once(name, lambda name=name, key=key: self.op("Shape", key, name=name, start=2, end=3))  # type: ignore[misc]  # typeshed
            for name, key in shapes.items()
        ]
        name = f"past.{among.lower()}"
        return sizes[0] if len(sizes) == 1 else self.once(name, lambda: self.op(among, *sizes, name=name))

    def n_total(self, among: str = "Max") -> ir.Value:
        """The number of tokens that attention sees, those of earlier calls (see `n_past`) included: (1,) int64."""
        if not self.pasts:
            return self.n_pos()
        name, past = f"total.{among.lower()}", self.n_past(among)
        return self.once(name, lambda: self.op("Add", past, self.n_pos(), name=name))

    def real_tokens(self) -> ir.Value:
        """Whether each position holds a token, which any value but 0 in attention_mask says: (batch, total) bool.

        ONNX Runtime would broadcast a mask or keys of another length, silently. A Split into one part refuses them.
        """

        def make() -> ir.Value:
            mask = self.op("Split", self.attention_mask, self.n_batch(), name="mask.of_batch", axis=0)
            if self.pasts or self.form == "masked":  # without attention, earlier calls leave nothing but the mask
                mask = self.op("Split", mask, self.n_total(), name="mask.of_total", axis=1)
            if len(self.pasts) > 1:
                mask = self.op("Split", mask, self.n_total("Min"), name="mask.of_each", axis=1)
            # OpenVINO 2026.4 does not read a Cast of a Split into one part; this one changes nothing
            mask = self.op("Reshape", mask, self.integers(0, 0), name="mask.sized")
            return self.op("Cast", mask, name="mask.tokens", to=ir.DataType.BOOL)

        return self.once("mask.tokens", make)

    def of_call(self, x: ir.Value, name: str) -> ir.Value:
        """The part for the tokens of this call, (batch, pos), of what is for all tokens, (batch, total)."""
        if self.form != "past":
            return x
        x = self.last_rows(x, name, axis=1)
        return x if self.pasts else self.op("Split", x, self.n_pos(), name=f"{name}_all", axis=1)

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
            real = self.of_call(self.real_tokens(), "ids.real")
            row = self.op("Where", real, row, self.row_number(0), name="ids.real_rows")
        highest = self.reduce("ReduceMax", row, 1, "ids.highest")  # (batch,)
        fits = self.op("Less", highest, self.row_number(unknown), name="ids.known")
        if self.start:
            fits = self.op("And", fits, self.is_opening(), name="ids.fit")
        fits.name = IN_VOCABULARY
        fits.type, fits.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([BATCH])
        self.outputs.append(fits)
        return self.op("Min", row, self.row_number(unknown - 1), name="ids.kept")

    def valid_ids(self, ids: ir.Value) -> ir.Value:
        """Token ids as they are, but negative ones out of range, which Gather refuses: it counts -1 from the end."""
        negative = self.op("Less", ids, self.scalar(0), name="ids.negative")
        return self.op("Where", negative, self.scalar(len(self.model.W_E)), ids, name="ids.valid")

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
        apart = self.reduce("ReduceMax", apart, 1, "opening.most")  # (batch,)
        return self.op("Equal", apart, self.scalar(0), name="opening.same")

    def n_pos(self) -> ir.Value:
        """The size of input_ids' axis 1, pos: (1,) int64."""
        return self.once("pos", lambda: self.op("Shape", self.input_ids, name="pos", start=1, end=2))

    def last_rows(self, x: ir.Value, name: str, *, axis: int) -> ir.Value:
        """The last pos entries of x along an axis, pos being the number of tokens in input_ids."""
        start = self.once("pos.negative", lambda: self.op("Neg", self.n_pos(), name="pos.negative"))
        return self.op("Slice", x, start, self.integers(2**62), self.integers(axis), name=name)
