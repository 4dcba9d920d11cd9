"""The ONNX graph of a CircuitModel, written node by node.

It is authored rather than traced: every shape is known, each layer has its own head count, and a small
graph matters, because at batch 1 the nodes cost more than the arithmetic. Only standard operators are
used, and embedding and unembedding stay one tensor when they are tied.

A graph has one of three forms. *Plain*: prompts of one length, input_ids alone. *Masked*: prompts padded on
the left, with their attention_mask. *With past*: masked, and each attention reads the keys and values of
earlier calls and gives out its own, `past_key_values.N.key` to `present.N.key`, N counting the attention
sublayers that are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape
from torch import Tensor

from exporter.circuit_model import CircuitModel
from exporter.positions import Rotary
from exporter.runtime import Form
from exporter.sublayers import MLP, Attention, Norm

OPSET = 20


class GraphAuthor:
    """Emits the nodes of one folded model, in order. Names say which sublayer a node belongs to."""

    def __init__(self, model: CircuitModel, form: Form) -> None:
        self.model = model
        self.form = form
        self.fixed = model.length if form == "plain" else None  # the sequence length, where it is known
        self.tape = tape.Tape()
        self.constants: dict[str, ir.Value] = {}
        self.known: dict[str, ir.Value] = {}  # what several sublayers read
        self.pos: str | int = self.fixed or "sequence"
        self.input_ids = _value("input_ids", ir.DataType.INT64, ["batch", self.pos])
        self.inputs = [self.input_ids]
        if form != "plain":
            total = "sequence" if form == "masked" else "total_sequence"
            self.attention_mask = _value("attention_mask", ir.DataType.INT64, ["batch", total])
            self.inputs.append(self.attention_mask)
        self.outputs: list[ir.Value] = []

    def author(self) -> ir.Graph:
        """The whole graph."""
        model = self.model
        W_E = self.weight("W_E", model.W_E)
        x = self.op("Gather", W_E, self.input_ids, name="embed")  # (batch, pos, d_model)
        if model.W_pos is not None:
            x = self.op("Add", x, self.rows("W_pos", model.W_pos, align="left"), name="embed.positions")
        for index, step in enumerate(model.steps):
            out = x
            if step.constant is not None:
                name = f"step{index}.constant"
                by_position = step.constant.ndim == 2
                constant = (
                    self.rows(name, step.constant, align=model.align)
                    if by_position
                    else self.weight(name, step.constant)
                )
                out = self.op("Add", out, constant, name=f"step{index}.add")
            for sublayer in step.sublayers:
                added = self.attention(sublayer, x) if isinstance(sublayer, Attention) else self.mlp(sublayer, x)
                out = self.op("Add", out, added, name=f"{_name(sublayer)}.residual")
            x = out
        logits = self.unembed(x, W_E if model.tied else self.weight("W_U", model.W_U))
        return ir.Graph(
            self.inputs,
            [logits, *self.outputs],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET},
            name="circuit",
        )

    # --- positions

    def n_pos(self) -> ir.Value:
        """How many tokens input_ids has: (1,)."""
        return self.once("pos", lambda: self.op("Shape", self.input_ids, name="pos", start=1, end=2))

    def position_ids(self) -> ir.Value:
        """Each token's position: (1, pos), or (batch, pos) where there is a mask."""

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
        """The last rows of x, as many as there are tokens."""
        start = self.once("pos.negative", lambda: self.op("Neg", self.n_pos(), name="pos.negative"))
        return self.op("Slice", x, start, self.integers(2**62), self.integers(axis), name=name)

    def rows(self, name: str, table: Tensor, *, align: str) -> ir.Value:
        """A table's rows, (pos, d_model), for these tokens."""
        value = self.weight(name, table)
        if self.fixed is not None:
            return value
        if align == "right":
            return self.last_rows(value, f"{name}.rows", axis=0)
        if self.form == "plain":
            return self.op("Slice", value, self.integers(0), self.n_pos(), self.integers(0), name=f"{name}.rows")
        return self.op("Gather", value, self.position_ids(), name=f"{name}.rows")  # (batch, pos, d_model)

    def mask(self) -> ir.Value | None:
        """What hides positions, added to the scores; None where there is nothing to hide."""
        if self.fixed == 1:
            return None
        if self.fixed is not None:
            return self.constant("mask", np.triu(np.full((self.fixed, self.fixed), -np.inf, np.float32), 1))
        return self.once("mask", self.free_mask)

    def free_mask(self) -> ir.Value:
        """The mask of whatever comes in: (pos, total), or (batch, 1, pos, total) where there is padding."""
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
            real = self.op("Cast", self.attention_mask, name="mask.real_1", to=ir.DataType.BOOL)
            real = self.op("Unsqueeze", real, self.integers(1, 2), name="mask.real")  # (batch, 1, 1, total)
            seen = self.op("And", seen, real, name="mask.seen_real")
            # padding sees itself, or softmax would have nothing to weigh
            seen = self.op("Or", seen, self.op("Equal", query, key, name="mask.self"), name="mask.seen_any")
        shown, hidden = (self.constant(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, -np.inf))
        return self.op("Where", seen, shown, hidden, name="mask")

    def rotate(self, x: ir.Value, rotary: Rotary, d_head: int, name: str) -> ir.Value:
        """Rotary embedding of (batch, head, pos, d_head): x cos + (x R) sin, R turning each pair by 90 degrees."""
        half = len(rotary.inv_freq)
        quarter_turn = np.zeros((d_head, d_head), np.float32)
        quarter_turn[range(half, 2 * half), range(half)] = -1
        quarter_turn[range(half), range(half, 2 * half)] = 1
        turned = self.op("MatMul", x, self.constant(f"rotary.turn{d_head}", quarter_turn), name=f"{name}.turned")
        cos, sin = self.cos_sin(rotary, d_head)
        turned = self.op("Mul", turned, sin, name=f"{name}.sin")
        return self.op("Add", self.op("Mul", x, cos, name=f"{name}.cos"), turned, name=f"{name}.rotated")

    def cos_sin(self, rotary: Rotary, d_head: int) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine for all dimensions of a head; those that are not turned have 1 and 0."""
        rest = d_head - 2 * len(rotary.inv_freq)
        if self.fixed is not None:
            cos, sin = (part[0, 0] for part in rotary(torch.arange(self.fixed)[None]))  # (pos, n_rotary)
            tables = (
                torch.cat([cos, cos.new_ones(self.fixed, rest)], 1),
                torch.cat([sin, sin.new_zeros(self.fixed, rest)], 1),
            )
            return self.weight("rotary.cos", tables[0]), self.weight("rotary.sin", tables[1])

        def make(function: str) -> ir.Value:
            inv_freq = torch.cat([rotary.inv_freq.float(), rotary.inv_freq.float(), torch.zeros(rest)])

            def turn() -> ir.Value:
                ids = self.op("Cast", self.position_ids(), name="rotary.float", to=ir.DataType.FLOAT)
                ids = self.op("Unsqueeze", ids, self.integers(1, 3), name="rotary.ids")  # (batch or 1, 1, pos, 1)
                return self.op("Mul", ids, self.weight("rotary.inv_freq", inv_freq), name="rotary.angles")

            value = self.op(function, self.once("rotary.angles", turn), name=f"rotary.{function.lower()}")
            if rotary.scale == 1.0:
                return value
            scale = torch.cat([torch.full((d_head - rest,), rotary.scale), torch.ones(rest)])
            return self.op("Mul", value, self.weight("rotary.scale", scale), name=f"rotary.{function.lower()}.scaled")

        return self.once("rotary.cos", lambda: make("Cos")), self.once("rotary.sin", lambda: make("Sin"))

    # --- sublayers

    def attention(self, attention: Attention, x: ir.Value) -> ir.Value:
        """What the heads add: (batch, pos, d_model)."""
        assert attention.b_V is None and attention.scale == 1.0  # folded
        name, n_heads, n_kv, d_head = _name(attention), len(attention.heads), len(attention.kv_heads), attention.d_head
        q, k, v = self.queries_keys_values(attention, self.norm(x, attention.norm, name), name)
        if self.form == "past":
            k, v = self.with_past(k, v, n_kv, d_head, name)
        if attention.kv_places != list(range(n_heads)):
            places = self.integers(*attention.kv_places)
            k = self.op("Gather", k, places, name=f"{name}.k_by_head", axis=1)  # (batch, head, pos, d_head)
            v = self.op("Gather", v, places, name=f"{name}.v_by_head", axis=1)
        k = self.op("Transpose", k, name=f"{name}.k_transposed", perm=[0, 1, 3, 2])  # (batch, head, d_head, pos)
        scores = self.op("MatMul", q, k, name=f"{name}.scores")  # (batch, head, pos, pos)
        mask = self.mask()
        if mask is not None:
            scores = self.op("Add", scores, mask, name=f"{name}.masked")
        pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)
        z = self.op("MatMul", pattern, v, name=f"{name}.z")  # (batch, head, pos, d_head)
        z = self.op("Transpose", z, name=f"{name}.z_by_pos", perm=[0, 2, 1, 3])  # (batch, pos, head, d_head)
        z = self.op("Reshape", z, self.integers(0, 0, n_heads * d_head), name=f"{name}.z_flat")
        return self.affine(z, attention.W_O, attention.b_O, f"{name}.out")

    def queries_keys_values(self, attention: Attention, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(batch, head, pos, d_head), and (batch, kv_head, pos, d_head) twice, from one product."""
        n_heads, n_kv, d_head = len(attention.heads), len(attention.kv_heads), attention.d_head
        parts = (attention.W_Q, attention.b_Q), (attention.W_K, attention.b_K), (attention.W_V, None)
        bias = None
        if attention.b_Q is not None or attention.b_K is not None:
            bias = torch.cat([w.new_zeros(w.shape[1]) if b is None else b for w, b in parts])
        qkv = self.affine(x, torch.cat([w for w, _ in parts], dim=1), bias, f"{name}.qkv")
        qkv = self.op("Reshape", qkv, self.integers(0, 0, n_heads + 2 * n_kv, d_head), name=f"{name}.heads")
        qkv = self.op("Transpose", qkv, name=f"{name}.by_head", perm=[0, 2, 1, 3])
        rotary = self.model.rotary
        if attention.q_norm is None and rotary is not None:
            qk, v = self.split(qkv, {f"{name}.qk": n_heads + n_kv, f"{name}.v": n_kv})
            q, k = self.split(self.rotate(qk, rotary, d_head, name), {f"{name}.q": n_heads, f"{name}.k": n_kv})
            return q, k, v
        q, k, v = self.split(qkv, {f"{name}.q": n_heads, f"{name}.k": n_kv, f"{name}.v": n_kv})
        if attention.q_norm is not None and attention.k_norm is not None:
            eps = attention.norm.eps
            q = self.norm(q, Norm(attention.q_norm, eps=eps, rms=True), f"{name}.q")
            k = self.norm(k, Norm(attention.k_norm, eps=eps, rms=True), f"{name}.k")
        if rotary is not None:
            q, k = self.rotate(q, rotary, d_head, f"{name}.q"), self.rotate(k, rotary, d_head, f"{name}.k")
        return q, k, v

    def with_past(self, k: ir.Value, v: ir.Value, n_kv: int, d_head: int, name: str) -> tuple[ir.Value, ir.Value]:
        """Keys and values of earlier calls before these; both together are outputs."""
        index, both = len(self.outputs) // 2, []
        for kind, now in (("key", k), ("value", v)):
            past = _value(
                f"past_key_values.{index}.{kind}", ir.DataType.FLOAT, ["batch", n_kv, "past_sequence", d_head]
            )
            self.inputs.append(past)
            present = self.op("Concat", past, now, name=f"present.{index}.{kind}", axis=2)
            present.type, present.shape = past.type, ir.Shape(["batch", n_kv, "total_sequence", d_head])
            self.outputs.append(present)
            both.append(present)
        return both[0], both[1]

    def mlp(self, mlp: MLP, x: ir.Value) -> ir.Value:
        """What the MLP adds: (batch, pos, d_model)."""
        name = _name(mlp)
        x = self.norm(x, mlp.norm, name)
        hidden = self.affine(x, mlp.W_in, mlp.b_in, f"{name}.in")  # (batch, pos, d_mlp)
        if mlp.W_gate is None:
            hidden = self.activation(hidden, mlp.activation, name)
        else:
            gate = self.activation(self.affine(x, mlp.W_gate, mlp.b_gate, f"{name}.gate"), mlp.activation, name)
            hidden = self.op("Mul", gate, hidden, name=f"{name}.gated")
        return self.affine(hidden, mlp.W_out, mlp.b_out, f"{name}.out")

    def activation(self, x: ir.Value, activation: str, name: str) -> ir.Value:
        """The MLP's nonlinearity."""
        if activation == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu")
        if activation == "relu":
            return self.op("Relu", x, name=f"{name}.relu")
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[activation]
        return self.op("Gelu", x, name=f"{name}.gelu", approximate=approximate)

    def norm(self, x: ir.Value, norm: Norm, name: str) -> ir.Value:
        """LayerNorm or RMSNorm; a folded one shares a gain of ones."""
        if norm.weight is None:
            d_model = self.model.W_E.shape[1]
            gain = self.constant("ones", np.ones(d_model, np.float32))
        else:
            gain = self.weight(f"{name}.norm.weight", norm.weight)
        if not norm.rms:
            bias = () if norm.bias is None else (self.weight(f"{name}.norm.bias", norm.bias),)
            return self.op("LayerNormalization", x, gain, *bias, name=f"{name}.norm", axis=-1, epsilon=norm.eps)
        # the pattern that ONNX Runtime fuses into one kernel when it loads the file
        square = self.op("Pow", x, self.constant("two", np.array(2.0, np.float32)), name=f"{name}.norm.square")
        mean = self.op("ReduceMean", square, self.integers(-1), name=f"{name}.norm.mean")
        eps = self.constant(f"eps.{norm.eps}", np.array(norm.eps, np.float32))
        root = self.op("Sqrt", self.op("Add", mean, eps, name=f"{name}.norm.eps"), name=f"{name}.norm.root")
        return self.op("Mul", self.op("Div", x, root, name=f"{name}.norm.unit"), gain, name=f"{name}.norm")

    def unembed(self, x: ir.Value, W_U: ir.Value) -> ir.Value:
        """Logits at every position. Gemm reads W_U, (vocab, d_model), as it lies: no transposed copy."""
        d_vocab, d_model = self.model.W_U.shape
        x = self.norm(x, self.model.final_norm, "final")
        x = self.op("Reshape", x, self.integers(-1, d_model), name="final.rows")  # (batch * pos, d_model)
        rows = self.op("Gemm", x, W_U, name="unembed", transB=1)  # (batch * pos, vocab)
        if self.fixed is not None:
            shape = self.integers(-1, self.fixed, d_vocab)
        else:
            batch_pos = self.op("Shape", self.input_ids, name="logits.batch_pos")
            shape = self.op("Concat", batch_pos, self.integers(d_vocab), name="logits.shape", axis=0)
        logits = self.op("Reshape", rows, shape, name="logits")
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch", self.pos, d_vocab])
        return logits

    # --- nodes and initializers

    def affine(self, x: ir.Value, weight: Tensor, bias: Tensor | None, name: str) -> ir.Value:
        """x @ weight + bias."""
        y = self.op("MatMul", x, self.weight(f"{name}.weight", weight), name=f"{name}.matmul")
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias), name=name)

    def split(self, x: ir.Value, sizes: dict[str, int]) -> list[ir.Value]:
        """Parts along axis 1, by name."""
        parts = list(
            self.tape.op_multi_out("Split", [x, self.integers(*sizes.values())], {"axis": 1}, num_outputs=len(sizes))
        )
        for part, name in zip(parts, sizes, strict=True):
            part.name = name
        return parts

    def op(self, op_type: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """One node with one output; both carry the name."""
        out = self.tape.op(op_type, inputs, attributes or None, name=name)
        out.name = name
        return out

    def once(self, name: str, make: Any) -> ir.Value:
        """What `make` gives the first time it is asked for under this name."""
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def weight(self, name: str, tensor: Tensor) -> ir.Value:
        """A weight as an initializer."""
        return self.constant(name, tensor.contiguous().numpy())

    def scalar(self, value: int) -> ir.Value:
        """An integer as an initializer."""
        return self.constant(f"scalar.{value}", np.array(value, np.int64))

    def integers(self, *values: int) -> ir.Value:
        """A list of integers as an initializer, one for equal lists."""
        return self.constant("ints." + ".".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer, one for each name."""
        if name not in self.constants:
            self.constants[name] = self.tape.initializer(ir.tensor(array, name=name), name)
        return self.constants[name]


def _value(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _name(sublayer: Attention | MLP) -> str:
    return f"{'a' if isinstance(sublayer, Attention) else 'm'}{sublayer.layer}"
