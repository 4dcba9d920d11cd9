"""What a graph costs, counted rather than timed: the same on every machine, without any noise.

FLOPs are those of products, two for a multiply-add: 2 M N K for (M, K) by (K, N), whatever the precision, with
the shapes that the given inputs bring. Counted are MatMul, Gemm, Einsum of two operands, MatMulInteger, Attention
(opset 23) and ONNX Runtime's own products and attention; norms, activations, softmax and everything else that
does some work for each number are not: together they are about a hundredth of the products. Shapes come from
ONNX's shape inference on a copy with these inputs' dimensions, and for ONNX Runtime's own operators, which it does
not know, from the rules below. Where a shape stays unknown, FLOPs are None rather than too few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from exporter.errors import InputError
from exporter.files.onnx_file import count_bytes, read_onnx

Shape = tuple[int, ...]
_SMALL = 4096  # numbers; shape inference reads those of the constants, and of weights only the dimensions
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_BYTES = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True)
class Proxies:
    """What a file is. file_bytes: with its external data; weight_bytes: of the initializers alone.

    parameters: numbers in floating or quantized initializers. read_bytes: of weights that one call reads at
    most, so of a table that is only gathered from, the gathered rows. flops: None where it cannot be told.
    """

    nodes: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    flops: int | None = None
    read_bytes: int | None = None


def count_proxies(path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Proxies:
    """Count a file's cost; its FLOPs for inputs of these shapes, by name. Raises InputError for no ONNX file."""
    file = read_onnx(path)
    model = file.proto
    weights = model.graph.initializer
    known = None if shapes is None else _infer_shapes(model, {name: tuple(shape) for name, shape in shapes.items()})
    return Proxies(
        nodes=len(model.graph.node),
        parameters=sum(math.prod(w.dims) for w in weights if w.data_type in (*_FLOATS, *_BYTES)),
        weight_bytes=sum(map(count_bytes, weights)),
        file_bytes=file.bytes + sum(beside.stat().st_size for beside in file.weights),
        flops=None if known is None else _count_flops(model.graph, known),
        read_bytes=None if known is None else _count_read_bytes(model.graph, known),
    )


def _infer_shapes(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Every value's shape for inputs of these shapes, where it can be inferred."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {name: tuple(tensor.dims) for name, tensor in weights.items()}
    types = {name: tensor.data_type for name, tensor in weights.items()}
    for value in model.graph.input:
        if value.name not in weights:
            if value.name not in shapes:
                raise InputError(f"no shape for the input {value.name}; give one for each of the graph's inputs")
            found[value.name] = shapes[value.name]
            types[value.name] = value.type.tensor_type.elem_type
    given = set(found)
    while True:  # ONNX's inference stops at ONNX Runtime's operators; a rule of ours takes it past them
        found |= _infer_onward(model, given, found, types)
        new = {name: shape for node in model.graph.node for name, shape in _apply_rule(node, found)}
        if not new:
            return found
        found |= new
        given |= set(new)


def _infer_onward(
    model: onnx.ModelProto, given: set[str], found: Mapping[str, Shape], types: Mapping[str, int]
) -> dict[str, Shape]:
    """What ONNX's own inference makes of a copy in which `given` are inputs; small constants keep their numbers."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    copy.graph.name = "shapes"
    small = [
        tensor
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != TensorProto.EXTERNAL
    ]
    copy.graph.initializer.extend(small)
    for name in sorted(given - {tensor.name for tensor in small}):
        copy.graph.input.append(helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), found[name]))
    copy.graph.node.extend(node for node in model.graph.node if not given.intersection(node.output))
    copy.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    result: dict[str, Shape] = {}
    for value in (*inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            result[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return result


def _apply_rule(node: NodeProto, known: Mapping[str, Shape]) -> list[tuple[str, Shape]]:
    """Outputs of one of ONNX Runtime's own operators, by name, where its inputs are known and they are not."""
    rule = _SHAPES.get(node.op_type)
    needed = [name for name in node.input[:2] if name]
    if rule is None or any(name not in known for name in needed) or node.output[0] in known:
        return []
    shape = rule(node, [known.get(name, ()) for name in node.input])
    if shape is None:
        return []
    return [(name, shape) for index, name in enumerate(node.output) if name and index in (0, 3)]


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _multiply(node: NodeProto, shapes: Sequence[Shape]) -> Shape | None:
    """The shape of a matrix product, both transposed as the node says."""
    a, b = shapes[:2]
    if min(len(a), len(b)) < 2 or _attribute(node, "transBatchA") or _attribute(node, "transBatchB"):
        return None
    rows = a[-1] if _attribute(node, "transA") else a[-2]
    columns = b[-2] if _attribute(node, "transB") else b[-1]
    before = a[:-2] if len(a) >= len(b) else b[:-2]
    return (*before, rows, columns)


def _attend(node: NodeProto, shapes: Sequence[Shape]) -> Shape | None:
    """MultiHeadAttention with queries, keys and values apart: (batch, pos, values' width)."""
    q, value = shapes[0], shapes[2] if len(shapes) > 2 else ()
    if len(q) != 3 or len(value) not in (3, 4):
        return None
    return (*q[:2], value[2] if len(value) == 3 else value[1] * value[3])


_Rule = Callable[[NodeProto, Sequence[Shape]], Shape | None]
_ALIKE = (
    *("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
_PRODUCTS = ("MatMul", "MatMulInteger", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")
_GEMMS = ("Gemm", "FusedGemm")
_ATTENTIONS = ("Attention", "MultiHeadAttention")
# Their cost shows only when they run.
_UNKNOWN = ("Conv", "ConvTranspose", "GRU", "If", "LSTM", "Loop", "RNN", "Scan", "SequenceMap")

# The shape of the first output (and of the fourth: a norm's sum) of what ONNX's inference does not know.
_SHAPES: dict[str, _Rule] = {
    **dict.fromkeys(_ALIKE, lambda node, shapes: shapes[0]),
    **dict.fromkeys((*_PRODUCTS[2:5], "FusedGemm"), _multiply),
    "MatMulNBits": lambda node, shapes: (*shapes[0][:-1], _attribute(node, "N")),
    "MultiHeadAttention": _attend,
}


def _count_flops(graph: onnx.GraphProto, known: Mapping[str, Shape]) -> int | None:
    """FLOPs of all products, None when there is one that cannot be told."""
    total = 0
    for node in graph.node:
        foreign = node.domain not in ("", "ai.onnx") and node.op_type not in _SHAPES
        if node.op_type in _UNKNOWN or (foreign and node.op_type not in _NO_PRODUCTS):
            return None
        if node.op_type not in (*_PRODUCTS, *_GEMMS, *_ATTENTIONS, "Einsum", "MatMulNBits"):
            continue
        if any(name not in known for name in (*filter(None, node.input[:2]), node.output[0])):
            return None
        flops = _count_node(node, [known.get(name, ()) for name in node.input], known[node.output[0]], known)
        if flops is None:
            return None
        total += flops
    return total


_NO_PRODUCTS = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "GatherBlockQuantized")


def _count_node(node: NodeProto, shapes: Sequence[Shape], out: Shape, known: Mapping[str, Shape]) -> int | None:
    """FLOPs of one product: 2 for each number that comes out and each that it sums over."""
    a = shapes[0]
    if node.op_type == "Einsum":
        return _count_einsum(node, shapes)
    if node.op_type in _ATTENTIONS:  # scores, then what they weigh; a past makes the keys longer
        length = shapes[1][-2] + sum(known[name][-2] for name in node.input[4:5] if node.domain == "" and name)
        return 2 * length * (math.prod(a) + math.prod(out))
    return 2 * math.prod(out) * (a[-2] if _attribute(node, "transA") else a[-1])


def _count_einsum(node: NodeProto, shapes: Sequence[Shape]) -> int | None:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return None
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return 2 * math.prod(sizes.values())


def _count_read_bytes(graph: onnx.GraphProto, known: Mapping[str, Shape]) -> int | None:
    """Bytes of weights that one call reads: all, but of a table only what is gathered from it."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input) & set(weights):
            readers.setdefault(name, []).append(node)
    total = 0
    for name, tensor in weights.items():
        n_bytes, nodes = count_bytes(tensor), readers.get(name, [])
        if nodes and all(node.op_type == "Gather" and node.input[0] == name for node in nodes):
            if any(node.output[0] not in known for node in nodes):
                return None
            gathered = sum(math.prod(known[node.output[0]]) for node in nodes)
            n_bytes = min(n_bytes, n_bytes * gathered // max(1, math.prod(tensor.dims)))
        total += n_bytes
    return total
