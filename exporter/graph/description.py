"""What an ONNX file has, for a manifest: read from the file, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.files.onnx_file import read_onnx

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class OnnxDescription:
    """Summary of an ONNX file for the manifest. Shapes by name; a free dimension is its name, such as `batch_size`."""

    opset: int
    ir_version: int
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    nodes: int


def describe_onnx(path: str | Path) -> OnnxDescription:
    """Read inputs, outputs, opset, IR version and node count. Raises InputError: `path` is no readable ONNX file."""
    return describe_graph(read_onnx(path).proto)


def describe_graph(proto: onnx.ModelProto) -> OnnxDescription:
    """`describe_onnx` for a graph in memory."""
    return OnnxDescription(
        opset=max((o.version for o in proto.opset_import if o.domain == ""), default=0),
        ir_version=proto.ir_version,
        inputs={value.name: _dims(value) for value in proto.graph.input},
        outputs={value.name: _dims(value) for value in proto.graph.output},
        nodes=len(proto.graph.node),
    )


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
