"""The nodes of the guard `in_scope`: the distance that `exporter.network.scope` defines, in float32 in every graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from exporter.files.onnx_file import is_external, read_external, read_onnx
from exporter.graph.guards import IN_SCOPE, SCOPE_DISTANCE
from exporter.graph.inputs import BATCH, InputAuthor
from exporter.network.scope import Scope

RESIDUALS = "scope.residual"
_DIRECTIONS, _SHIFT = "scope.directions", "scope.shift"


def emit_scope(author: InputAuthor, x: ir.Value, scope: Scope | None, *, last: bool) -> list[ir.Value]:
    """The outputs in_scope, (batch,) bool, and scope_distance, (batch,) float32; none without a scope.

    x: the residual before the final norm, (batch, pos, d_model), or (batch, d_model) of the `last` position. in_scope
    is true for a call that goes on from keys and values of earlier calls: the first one has judged the prompt.
    """
    if scope is None:
        return []
    if not last:
        x = author.take_last(x, axis=1)
    if author.is_half:
        x = author.op("Cast", x, name="scope.float", to=ir.DataType.FLOAT)
    weights = (author.constant(_DIRECTIONS, scope.directions.numpy()), author.constant(_SHIFT, scope.shift.numpy()))
    apart = author.op("Gemm", x, *weights, name="scope.apart")  # (batch, direction)
    distance = author.reduce("ReduceSumSquare", apart, 1, SCOPE_DISTANCE)
    grows = author.form == "past"
    limit = author.constant("scope.limit", np.array(1, np.float32))
    within = author.op("LessOrEqual", distance, limit, name="scope.within" if grows else IN_SCOPE)
    if grows:
        total = author.op("Shape", author.attention_mask, name="scope.total", start=1, end=2)  # (1,)
        later = author.op("Less", author.n_pos(), total, name="scope.later")  # (1,)
        within = author.op("Or", within, later, name=IN_SCOPE)
    for value, dtype in ((within, ir.DataType.BOOL), (distance, ir.DataType.FLOAT)):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([BATCH])
    return [within, distance]


def add_residuals(path: str | Path) -> None:
    """Give a file with a guard one more output, `RESIDUALS`: what the distance is taken of, (batch, d_model)."""
    proto = onnx.load(path, load_external_data=False)
    (gemm,) = (node for node in proto.graph.node if node.name == "scope.apart")
    proto.graph.node.append(onnx.helper.make_node("Identity", [gemm.input[0]], [RESIDUALS], name=RESIDUALS))
    shape = [BATCH, next(tensor.dims[0] for tensor in proto.graph.initializer if tensor.name == _DIRECTIONS)]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(RESIDUALS, onnx.TensorProto.FLOAT, shape))
    onnx.save(proto, path)


def read_scope(path: str | Path) -> Scope | None:
    """The scope that a file computes; None for a file without. Raises InputError: it is no readable ONNX file."""
    file = read_onnx(path)
    found = {tensor.name: tensor for tensor in file.proto.graph.initializer if tensor.name in (_DIRECTIONS, _SHIFT)}
    if len(found) < 2:
        return None
    arrays = {}
    for name, tensor in found.items():
        taken = onnx.TensorProto()
        taken.CopyFrom(tensor)
        if is_external(tensor):
            taken.raw_data = read_external(tensor, file.path.parent)
            taken.ClearField("external_data")
            taken.ClearField("data_location")
        arrays[name] = torch.from_numpy(onnx.numpy_helper.to_array(taken).copy())
    return Scope(arrays[_DIRECTIONS], arrays[_SHIFT])
