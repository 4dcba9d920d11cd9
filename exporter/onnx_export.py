"""Write a CircuitModel as one ONNX file, node by node.

The graph is authored here rather than traced: every shape is known, each layer has its own head
count, and a small graph matters, because at batch 1 the nodes cost more than the arithmetic. Only
standard operators (opset 20, IR 10) are used, the weights are inside the file, and embedding and
unembedding stay one tensor when they are tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir import tape
from torch import Tensor

from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.rewrite import fold_model
from exporter.sublayers import MLP, Attention, Norm

OPSET, IR_VERSION = 20, 10
PRODUCER = "export-circuit"
_MAX_BYTES = 2**31 - 2**20  # protobuf ends at 2 GiB; the graph itself needs some of it


@dataclass(frozen=True)
class OnnxDescription:
    """What a file on disk is, for the manifest: shapes have a name where they are free."""

    opset: int
    ir_version: int
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    nodes: int


def export_onnx(model: CircuitModel, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> OnnxDescription:
    """Write `model` to `path`: input_ids (batch, pos) int64 in, logits (batch, pos, vocab) out.

    Batch is free; pos is free unless `model.length` pins it. Folds first, which changes nothing on a
    model that `rewrite_model` made. `metadata` goes into the file's metadata_props. Raises InputError
    when the weights do not fit into one file (2 GB).
    """
    model = fold_model(model)
    n_bytes = sum(tensor.nbytes for tensor in model.parameters())
    if n_bytes > _MAX_BYTES:
        raise InputError(
            f"the model needs {n_bytes / 1e9:.1f} GB, and one ONNX file holds 2 GB; "
            "raise alpha so that less survives, or choose a smaller model"
        )
    graph = _GraphAuthor(model).author()
    written = ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER, metadata_props=dict(metadata or {}))
    ir.save(written, path)
    return describe_onnx(path)


def describe_onnx(path: str | Path) -> OnnxDescription:
    """Read inputs, outputs, opset, IR version and node count of an ONNX file; raises InputError."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many types here, all of which mean the same
        raise InputError(f"{path} is not a readable ONNX file ({str(error).splitlines()[0][:120]})") from error
    return OnnxDescription(
        opset=max((o.version for o in proto.opset_import if o.domain == ""), default=0),
        ir_version=proto.ir_version,
        inputs={value.name: _dims(value) for value in proto.graph.input},
        outputs={value.name: _dims(value) for value in proto.graph.output},
        nodes=len(proto.graph.node),
    )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata_props of an ONNX file; raises InputError."""
    try:
        return {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}
    except Exception as error:  # as above
        raise InputError(f"{path} is not a readable ONNX file ({str(error).splitlines()[0][:120]})") from error


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


class _GraphAuthor:
    """Emits the nodes of one model, in order. Names say which sublayer a node belongs to."""

    def __init__(self, model: CircuitModel) -> None:
        self.model = model
        self.tape = tape.Tape()
        self.constants: dict[str, ir.Value] = {}
        pos: str | int = model.length or "sequence"
        self.input_ids = ir.Value(
            name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", pos])
        )

    def author(self) -> ir.Graph:
        """The whole graph."""
        model = self.model
        W_E = self.weight("W_E", model.W_E)
        x = self.op("Gather", W_E, self.input_ids, name="embed")  # (batch, pos, d_model)
        x = self.op("Add", x, self.positions(), name="embed.positions")
        for index, step in enumerate(model.steps):
            out = x
            if step.constant is not None:
                out = self.op("Add", out, self.weight(f"step{index}.constant", step.constant), name=f"step{index}.add")
            for sublayer in step.sublayers:
                added = self.attention(sublayer, x) if isinstance(sublayer, Attention) else self.mlp(sublayer, x)
                out = self.op("Add", out, added, name=f"{_name(sublayer)}.residual")
            x = out
        logits = self.unembed(x, W_E if model.tied else self.weight("W_U", model.W_U))
        return ir.Graph(
            [self.input_ids],
            [logits],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET},
            name="circuit",
        )

    def positions(self) -> ir.Value:
        """The position table's rows for this sequence: (pos, d_model)."""
        W_pos = self.weight("W_pos", self.model.W_pos)
        if self.model.length is not None:
            return W_pos
        pos = self.op("Shape", self.input_ids, name="pos", start=1, end=2)  # (1,)
        self.constants["pos"] = pos
        return self.op("Slice", W_pos, self.integers(0), pos, self.integers(0), name="positions")

    def mask(self) -> ir.Value | None:
        """What hides later positions, added to the scores: (pos, pos); None where there is one position."""
        if self.model.length == 1:
            return None
        if "mask" not in self.constants:
            self.constants["mask"] = self.fixed_mask() if self.model.length else self.free_mask()
        return self.constants["mask"]

    def fixed_mask(self) -> ir.Value:
        """The causal mask of a known length, as a constant."""
        length = self.model.length
        assert length is not None
        return self.constant("mask", np.triu(np.full((length, length), -np.inf, np.float32), 1))

    def free_mask(self) -> ir.Value:
        """The causal mask of whatever length comes in."""
        pos = self.op("Squeeze", self.constants["pos"], name="mask.pos")  # ()
        zero, one = (self.constant(f"scalar.{i}", np.array(i, np.int64)) for i in (0, 1))
        key = self.op("Range", zero, pos, one, name="mask.key")  # (pos,)
        query = self.op("Unsqueeze", key, self.integers(1), name="mask.query")  # (pos, 1)
        seen = self.op("GreaterOrEqual", query, key, name="mask.seen")  # (pos, pos)
        shown, hidden = (self.constant(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, -np.inf))
        return self.op("Where", seen, shown, hidden, name="mask")

    def attention(self, attention: Attention, x: ir.Value) -> ir.Value:
        """What the heads add: (batch, pos, d_model)."""
        assert attention.b_K is None  # folded, as b_V and the scale
        name, n_heads, d_head = _name(attention), len(attention.heads), attention.d_head
        weights = torch.cat([attention.W_Q, attention.W_K, attention.W_V], dim=1)  # (d_model, 3 * head * d_head)
        bias: Tensor | None = attention.b_Q
        if bias is not None:  # of the three, only q has one left
            bias = torch.cat([bias, bias.new_zeros(2 * n_heads * d_head)])
        qkv = self.affine(self.norm(x, attention.norm, name), weights, bias, f"{name}.qkv")
        qkv = self.op("Reshape", qkv, self.integers(0, 0, 3 * n_heads, d_head), name=f"{name}.heads")
        qkv = self.op("Transpose", qkv, name=f"{name}.by_head", perm=[0, 2, 1, 3])  # (batch, 3 * head, pos, d_head)
        q, k, v = self.split(qkv, f"{name}.q", f"{name}.k", f"{name}.v")
        k = self.op("Transpose", k, name=f"{name}.k_transposed", perm=[0, 1, 3, 2])  # (batch, head, d_head, pos)
        scores = self.op("MatMul", q, k, name=f"{name}.scores")  # (batch, head, pos, pos)
        if (mask := self.mask()) is not None:
            scores = self.op("Add", scores, mask, name=f"{name}.masked")
        pattern = self.op("Softmax", scores, name=f"{name}.pattern", axis=-1)
        z = self.op("MatMul", pattern, v, name=f"{name}.z")  # (batch, head, pos, d_head)
        z = self.op("Transpose", z, name=f"{name}.z_by_pos", perm=[0, 2, 1, 3])  # (batch, pos, head, d_head)
        z = self.op("Reshape", z, self.integers(0, 0, n_heads * d_head), name=f"{name}.z_flat")
        return self.affine(z, attention.W_O, attention.b_O, f"{name}.out")

    def mlp(self, mlp: MLP, x: ir.Value) -> ir.Value:
        """What the MLP adds: (batch, pos, d_model)."""
        name = _name(mlp)
        hidden = self.affine(self.norm(x, mlp.norm, name), mlp.W_in, mlp.b_in, f"{name}.in")  # (batch, pos, d_mlp)
        return self.affine(self.activation(hidden, mlp.activation, name), mlp.W_out, mlp.b_out, f"{name}.out")

    def activation(self, x: ir.Value, activation: str, name: str) -> ir.Value:
        """The MLP's nonlinearity."""
        if activation == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x, name=f"{name}.gate"), name=f"{name}.silu")
        if activation == "relu":
            return self.op("Relu", x, name=f"{name}.relu")
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[activation]
        return self.op("Gelu", x, name=f"{name}.gelu", approximate=approximate)

    def norm(self, x: ir.Value, norm: Norm, name: str) -> ir.Value:
        """LayerNorm; a folded one shares a gain of ones."""
        d_model = self.model.W_E.shape[1]
        if norm.weight is None:
            gain = self.constant("ones", np.ones(d_model, np.float32))
        else:
            gain = self.weight(f"{name}.norm.weight", norm.weight)
        bias = () if norm.bias is None else (self.weight(f"{name}.norm.bias", norm.bias),)
        return self.op("LayerNormalization", x, gain, *bias, name=f"{name}.norm", axis=-1, epsilon=norm.eps)

    def unembed(self, x: ir.Value, W_U: ir.Value) -> ir.Value:
        """Logits at every position. Gemm reads W_U, (vocab, d_model), as it lies: no transposed copy."""
        d_vocab, d_model = self.model.W_U.shape
        x = self.norm(x, self.model.final_norm, "final")
        x = self.op("Reshape", x, self.integers(-1, d_model), name="final.rows")  # (batch * pos, d_model)
        rows = self.op("Gemm", x, W_U, name="unembed", transB=1)  # (batch * pos, vocab)
        if self.model.length is not None:
            shape = self.integers(-1, self.model.length, d_vocab)
        else:
            batch_pos = self.op("Shape", self.input_ids, name="logits.batch_pos")
            shape = self.op("Concat", batch_pos, self.integers(d_vocab), name="logits.shape", axis=0)
        logits = self.op("Reshape", rows, shape, name="logits")
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch", self.model.length or "sequence", d_vocab])
        return logits

    def affine(self, x: ir.Value, weight: Tensor, bias: Tensor | None, name: str) -> ir.Value:
        """x @ weight + bias."""
        y = self.op("MatMul", x, self.weight(f"{name}.weight", weight), name=f"{name}.matmul")
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias), name=name)

    def split(self, x: ir.Value, *names: str) -> list[ir.Value]:
        """Equal parts along axis 1."""
        parts = list(
            self.tape.op_multi_out("Split", [x], {"axis": 1, "num_outputs": len(names)}, num_outputs=len(names))
        )
        for part, name in zip(parts, names, strict=True):
            part.name = name
        return parts

    def op(self, op_type: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """One node with one output; both carry the name."""
        out = self.tape.op(op_type, inputs, attributes or None, name=name)
        out.name = name
        return out

    def weight(self, name: str, tensor: Tensor) -> ir.Value:
        """A weight as an initializer."""
        return self.constant(name, tensor.contiguous().numpy())

    def integers(self, *values: int) -> ir.Value:
        """A list of integers as an initializer, one for equal lists."""
        return self.constant("ints." + ".".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer, one for each name."""
        if name not in self.constants:
            self.constants[name] = self.tape.initializer(ir.tensor(array, name=name), name)
        return self.constants[name]


def _name(sublayer: Attention | MLP) -> str:
    return f"{'a' if isinstance(sublayer, Attention) else 'm'}{sublayer.layer}"
