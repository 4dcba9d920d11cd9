"""Positions and what depends on them in a graph: tables by position, attention masks, rotary embeddings.

For prompts of one fixed length they are constants; else nodes compute them.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporter.graph.inputs import InputAuthor
from exporter.network.positions import Rotary


class PositionAuthor(InputAuthor):
    """Emits the nodes on positions that sublayers share, each once, when first needed."""

    # --- positions

    def position_ids(self) -> ir.Value:
        """Each token's position, 0 for a prompt's first token: (1, pos), or (batch, pos) with an attention_mask."""

        def make() -> ir.Value:
            if self.form == "plain":
                pos = self.op("Squeeze", self.n_pos(), name="position.count")  # ()
                along = self.op("Range", self.scalar(0), pos, self.scalar(1), name="position.range")
                return self.op("Unsqueeze", along, self.integers(0), name="position.ids")  # (1, pos)
            real = self.op("Cast", self.real_tokens(), name="position.real", to=ir.DataType.INT64)
            ids = self.op("CumSum", real, self.scalar(1), name="position.ids", exclusive=1)  # tokens before it
            return self.of_call(ids, "position.own")

        return self.once("position_ids", make)

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
        """The additive attention mask, 0 or `hidden`; None where the only query sees every position.

        (pos, total), or (batch, 1, pos, total) with an attention_mask.
        """
        if self.length is not None and self.length - self.start == 1:
            return None
        if self.length is not None:
            hidden = np.triu(np.full((self.length, self.length), self.hidden, np.float32), 1)
            return self.number("mask", hidden[self.start :])
        return self.once("mask", self.free_mask)

    def free_mask(self) -> ir.Value:
        """The attention mask for prompts of free length: (pos, total), or (batch, 1, pos, total) with padding."""
        total = self.op("Squeeze", self.n_total(), name="mask.total")  # ()
        first = self.op("Squeeze", self.n_past(), name="mask.first") if self.pasts else self.scalar(0)
        key = self.op("Range", self.scalar(0), total, self.scalar(1), name="mask.key")  # (total,)
        query = self.op("Range", first, total, self.scalar(1), name="mask.query_1")
        query = self.op("Unsqueeze", query, self.integers(1), name="mask.query")  # (pos, 1)
        seen = self.op("GreaterOrEqual", query, key, name="mask.seen")  # (pos, total)
        if self.form != "plain":
            real = self.op("Unsqueeze", self.real_tokens(), self.integers(1, 2), name="mask.real")
            seen = self.op("And", seen, real, name="mask.seen_real")  # (batch, 1, pos, total)
        return self.hide(seen, "mask")

    def last_mask(self) -> ir.Value | None:
        """The mask of the last position, which sees all but padding: (batch, 1, 1, total); None in the form "plain"."""
        if self.form == "plain":
            return None

        def make() -> ir.Value:
            real = self.op("Unsqueeze", self.real_tokens(), self.integers(1, 2), name="last_mask.real")
            return self.hide(real, "last_mask")

        return self.once("last_mask", make)

    def hide(self, seen: ir.Value, name: str) -> ir.Value:
        """0 where `seen`, else `hidden`."""
        shown, hidden = (self.number(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, self.hidden))
        return self.op("Where", seen, shown, hidden, name=name)

    @property
    def hidden(self) -> float:
        """What is added to the score of a position that is not seen: its exp is 0, unless no position is seen.

        Finite, so that a row of padding alone has an average and not NaN. Half the range, so that sums stay finite.
        """
        return float(ml_dtypes.finfo(self.dtype).min) / 2  # type: ignore[no-untyped-call]  # ml_dtypes has no annotations

    def rotate(self, x: ir.Value, rotary: Rotary, d_head: int, name: str, *, last: bool = False) -> ir.Value:
        """Rotary embedding of (batch, head, pos, d_head), or at the `last` position of (batch, head, 1, d_head).

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

        (pos, d_head) for fixed length, else (batch or 1, 1, pos, d_head); for the `last` position, pos is 1.
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
                # a table, which ONNX Runtime computes at load, so that positions beyond the model's are refused
                ends = (self.constant(f"float.{n}", np.array(n, np.float32)) for n in (0, self.model.max_length, 1))
                positions = self.op("Range", *ends, name="rotary.positions")
                ids = self.op("Gather", positions, self.position_ids(), name="rotary.float")
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
        return (self.keep_last(cos, axis=2), self.keep_last(sin, axis=2)) if last else (cos, sin)
