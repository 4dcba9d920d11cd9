"""Nodes and initializers of an ONNX graph, in the precision that the options name.

The building blocks of `exporter.graph.author`: linear maps, norms, activations, embeddings. What a precision changes is
decided here, except for the unembedding (`GraphAuthor.unembed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape
from torch import Tensor

from exporter.graph.int8 import MIDDLE, STORED
from exporter.graph.options import GraphOptions
from exporter.network.norm import Norm

Array = np.ndarray[Any, Any]

_DTYPES: dict[str, Any] = {"fp32": np.float32, "int8": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
T = TypeVar("T")


class NodeAuthor:
    """Emits nodes in order; a node and its output have the name that they are emitted under."""

    def __init__(self, options: GraphOptions) -> None:
        self.options = options
        self.dtype = _DTYPES[options.precision]  # of all values, except operands of int8 products
        self.tape = tape.Tape()
        self.constants: dict[str, ir.Value] = {}
        self.known: dict[str, Any] = {}  # by name: values that several sublayers read, see `once`

    @property
    def is_half(self) -> bool:
        """Whether numbers have 16 bits."""
        return bool(self.dtype != np.float32)

    def is_int8(self, name: str) -> bool:
        """Whether the part that a name begins with, such as `a3` in `a3.out`, is in int8."""
        return self.options.precision == "int8" and name.partition(".")[0] not in self.options.in_fp32

    # --- layers

    def linear(self, x: ir.Value, weight: Tensor, bias: Tensor | None, name: str, *, rows: bool = False) -> ir.Value:
        """x @ weight + bias: x (..., in), weight (in, out). With `rows`, x is (row, in), and one Gemm does both."""
        if self.is_int8(name):
            return self._linear_int8(x, weight, bias, name, rows=rows)
        W = self.weight(f"{name}.weight", weight)
        if rows:
            b = () if bias is None else (self.weight(f"{name}.bias", bias),)
            return self.op("Gemm", x, W, *b, name=name)
        y = self.op("MatMul", x, W, name=f"{name}.matmul")
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias), name=name)

    def _linear_int8(self, x: ir.Value, weight: Tensor, bias: Tensor | None, name: str, *, rows: bool) -> ir.Value:
        """`linear` in int8: weights symmetric, one scale for each output column; activations quantised at run time.

        With scales by tensor, the nodes are in the order that ONNX Runtime fuses into one kernel at load.
        """
        if self.options.target == "ort" and self.options.scales == "tensor":
            return self._fused_int8(x, weight, bias, name)
        x8, x_scale, x_zero = self.once(f"{x.name}.int8", lambda: self.quantise(x, axis=1 if rows else 2))
        W, W_zero = self._weight_int8(weight, name)
        y = self.op("MatMulInteger", x8, W, x_zero, *([] if W_zero is None else [W_zero]), name=f"{name}.product")
        y = self.op("Cast", y, name=f"{name}.float", to=ir.DataType.FLOAT)
        scale = self.weight(f"{name}.scale", self.scale_of(weight))  # (out,)
        if self.options.scales == "token":
            y = self.op("Mul", self.op("Mul", y, x_scale, name=f"{name}.by_token"), scale, name=f"{name}.scaled")
        else:
            y = self.op("Mul", y, self.op("Mul", x_scale, scale, name=f"{name}.scales"), name=f"{name}.scaled")
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias), name=name)

    def _fused_int8(self, x: ir.Value, weight: Tensor, bias: Tensor | None, name: str) -> ir.Value:
        """`_linear_int8` as ONNX Runtime's own fused operator, DynamicQuantizeMatMul."""
        W, zero = self._weight_int8(weight, name)
        added = () if bias is None else (self.weight(f"{name}.bias", bias),)
        out = self.tape.op(
            "DynamicQuantizeMatMul",
            [x, W, self.weight(f"{name}.scale", self.scale_of(weight)), zero, *added],
            domain="com.microsoft",
            version=1,
            name=name,
        )
        out.name = name
        return out

    def _weight_int8(self, weight: Tensor, name: str) -> tuple[ir.Value, ir.Value | None]:
        """The weight in 8 bits, and its zero point; None where that is 0."""
        zero = STORED[self.options.weight_type].zero
        stored = (weight / self.scale_of(weight)).round() + zero
        stored = stored.to(torch.uint8 if zero else torch.int8)
        return self.constant(f"{name}.weight", stored.contiguous().numpy()), self.middle() if zero else None

    def scale_of(self, weight: Tensor) -> Tensor:
        """The scale of each output column of a weight (in, out) in 8 bits, (out,)."""
        return _scale_of(weight, dim=0, largest=STORED[self.options.weight_type].largest)

    def quantise(self, x: ir.Value, *, axis: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x as uint8, its scale and its zero point.

        By tensor: one scale and one zero point. By token: scales (..., 1), and 128 as the zero point; `axis` is the
        last one, as ONNX Runtime (1.31) reduces an empty tensor wrongly along -1.
        """
        if self.options.scales == "tensor":
            parts = list(self.tape.op_multi_out("DynamicQuantizeLinear", [x], None, num_outputs=3))
            for part, name in zip(parts, ("int8", "scale", "zero"), strict=True):
                part.name = f"{x.name}.{name}"
            return parts[0], parts[1], parts[2]
        size = self.op("Abs", x, name=f"{x.name}.size")
        largest = self.reduce("ReduceMax", size, axis, f"{x.name}.largest", keep=True)
        some = self.constant("int8.smallest", np.array(1e-30, np.float32))  # no division by 0
        largest = self.op("Max", largest, some, name=f"{x.name}.above_zero")
        scale = self.op("Div", largest, self.constant("int8.127", np.array(127, np.float32)), name=f"{x.name}.scale")
        rounded = self.op("Round", self.op("Div", x, scale, name=f"{x.name}.steps"), name=f"{x.name}.rounded")
        middle = self.constant("int8.middle.float", np.array(MIDDLE, np.float32))  # int8 inputs have no fast kernel
        shifted = self.op("Add", rounded, middle, name=f"{x.name}.shifted")
        return self.op("Cast", shifted, name=f"{x.name}.int8", to=ir.DataType.UINT8), scale, self.middle()

    def middle(self) -> ir.Value:
        """The zero point of symmetric values stored as uint8, 128."""
        return self.constant("int8.middle", np.array(MIDDLE, np.uint8))

    def embed(self, table: Tensor, rows: ir.Value, name: str) -> ir.Value:
        """The table's rows, of (row, d_model), at the indices `rows`, (...): (..., d_model)."""
        if not self.is_int8(name):
            return self.op("Gather", self.weight(name, table), rows, name=f"{name}.embed")
        scale = _scale_of(table, dim=1)[:, None]  # (row, 1)
        quantised = (table / scale).round().to(torch.int8)
        x = self.op("Gather", self.constant(name, quantised.contiguous().numpy()), rows, name=f"{name}.rows")
        x = self.op("Cast", x, name=f"{name}.float", to=ir.DataType.FLOAT)
        scales = self.op("Gather", self.weight(f"{name}.scale", scale), rows, name=f"{name}.scales")
        return self.op("Mul", x, scales, name=f"{name}.embed")

    def norm(self, x: ir.Value, norm: Norm, name: str, *, width: int) -> ir.Value:
        """LayerNorm or RMSNorm over the last axis, of size `width`; norms without gain or bias share ones or zeros."""
        gain = torch.ones(width) if norm.weight is None else norm.weight
        gain_name = f"ones{width}" if norm.weight is None else f"{name}.norm.weight"
        if not norm.rms:
            # the bias is optional, but ONNX Runtime 1.18 aborts without one, and its optimizer fails
            bias = torch.zeros(width) if norm.bias is None else norm.bias
            bias_name = f"zeros{width}" if norm.bias is None else f"{name}.norm.bias"
            added = self.weight(gain_name, gain), self.weight(bias_name, bias)
            return self.op("LayerNormalization", x, *added, name=f"{name}.norm", axis=-1, epsilon=norm.eps)
        # the pattern that ONNX Runtime fuses into one kernel at load; in float32, since squares overflow fp16
        if self.is_half:
            x = self.op("Cast", x, name=f"{name}.norm.float", to=ir.DataType.FLOAT)
        square = self.op("Pow", x, self.constant("two", np.array(2.0, np.float32)), name=f"{name}.norm.square")
        mean = self.reduce("ReduceMean", square, -1, f"{name}.norm.mean", keep=True)
        eps = self.constant(f"eps.{norm.eps}", np.array(norm.eps, np.float32))
        root = self.op("Sqrt", self.op("Add", mean, eps, name=f"{name}.norm.eps"), name=f"{name}.norm.root")
        unit = self.op("Div", x, root, name=f"{name}.norm.unit")
        if self.is_half:
            unit = self.from_float(unit, f"{name}.norm.half")
        return self.op("Mul", unit, self.weight(gain_name, gain), name=f"{name}.norm")

    def activation(self, x: ir.Value, activation: str, name: str) -> ir.Value:
        """The MLP's nonlinearity, by its name in `ACTIVATIONS`."""
        if activation == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu")
        if activation == "relu":
            return self.op("Relu", x, name=f"{name}.relu")
        if self.options.opset < 20:
            return self._gelu(x, activation, f"{name}.gelu")
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[activation]
        return self.op("Gelu", x, name=f"{name}.gelu", approximate=approximate)

    def _gelu(self, x: ir.Value, activation: str, name: str) -> ir.Value:
        """Gelu before opset 20, in the order of nodes that ONNX Runtime fuses into one: x / 2 * (1 + erf or tanh)."""

        def number(value: float) -> ir.Value:
            return self.number(f"gelu.{value:.4g}", np.array(value, np.float32))

        if activation == "gelu":
            inner = self.op("Erf", self.op("Div", x, number(2**0.5), name=f"{name}.scaled"), name=f"{name}.erf")
        else:
            cube = self.op(
                "Mul", self.op("Pow", x, number(3), name=f"{name}.cube"), number(0.044715), name=f"{name}.bent"
            )
            bent = self.op("Add", x, cube, name=f"{name}.sum")
            inner = self.op("Mul", bent, number((2 / np.pi) ** 0.5), name=f"{name}.scaled")
            inner = self.op("Tanh", inner, name=f"{name}.tanh")
        inner = self.op("Add", inner, number(1), name=f"{name}.above_0")
        return self.op("Mul", self.op("Mul", x, number(0.5), name=f"{name}.half"), inner, name=name)

    # --- nodes

    def op(self, op_type: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """One node with one output; both have the name."""
        out = self.tape.op(op_type, inputs, attributes or None, name=name)
        out.name = name
        return out

    def reduce(self, op_type: str, x: ir.Value, axis: int, name: str, *, keep: bool = False) -> ir.Value:
        """x reduced along an axis, an attribute before opset 18, which is dropped, or kept with size 1."""
        if self.options.opset < 18:
            return self.op(op_type, x, name=name, axes=[axis], keepdims=int(keep))
        return self.op(op_type, x, self.integers(axis), name=name, keepdims=int(keep))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """make(), called once for each name; later calls return the same value."""
        if name not in self.known:
            self.known[name] = make()
        return cast("T", self.known[name])

    def split(self, x: ir.Value, sizes: dict[str, int], *, axis: int) -> list[ir.Value]:
        """x split along an axis into parts; `sizes` gives each part's size, by the part's name."""
        parts = list(
            self.tape.op_multi_out("Split", [x, self.integers(*sizes.values())], {"axis": axis}, num_outputs=len(sizes))
        )
        for part, name in zip(parts, sizes, strict=True):
            part.name = name
        return parts

    def take_last(self, x: ir.Value, *, axis: int) -> ir.Value:
        """The last entry along an axis, which is dropped."""
        return self.once(
            f"{x.name}.last", lambda: self.op("Gather", x, self.scalar(-1), name=f"{x.name}.last", axis=axis)
        )

    def keep_last(self, x: ir.Value, *, axis: int) -> ir.Value:
        """The last entry along an axis, which stays, of size 1."""
        end = self.integers(-1), self.integers(2**62), self.integers(axis)
        return self.once(f"{x.name}.last", lambda: self.op("Slice", x, *end, name=f"{x.name}.last"))

    def from_float(self, x: ir.Value, name: str) -> ir.Value:
        """A float32 value cast to the graph's 16-bit type; unchanged in a float32 graph."""
        return self.op("Cast", x, name=name, to=ir.DataType.from_numpy(np.dtype(self.dtype))) if self.is_half else x

    # --- initializers

    def weight(self, name: str, tensor: Tensor) -> ir.Value:
        """A weight as an initializer, in the graph's type."""
        return self.number(name, tensor.contiguous().numpy())

    def number(self, name: str, array: Array) -> ir.Value:
        """A floating-point array as an initializer, in the graph's type."""
        return self.constant(name, array.astype(self.dtype) if self.is_half else array)

    def scalar(self, value: int) -> ir.Value:
        """An integer as an int64 initializer, ()."""
        return self.constant(f"scalar.{value}", np.array(value, np.int64))

    def integers(self, *values: int) -> ir.Value:
        """Integers as an int64 initializer, (n,); equal lists share one."""
        return self.constant("ints." + ".".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name: str, array: Array) -> ir.Value:
        """An array as an initializer; calls with the same name share the first one."""
        if name not in self.constants:
            self.constants[name] = self.tape.initializer(ir.tensor(array, name=name), name)
        return self.constants[name]


def _scale_of(weight: Tensor, *, dim: int, largest: int = 127) -> Tensor:
    """The scale of symmetric quantisation, max |weight| / largest along a dimension, which is dropped."""
    return (weight.abs().amax(dim=dim) / largest).clamp(min=torch.finfo(torch.float32).tiny)


def make_value(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    """A named input or output of the graph; a string in the shape names a free dimension."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
