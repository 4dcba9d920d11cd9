"""Write a CircuitModel as one ONNX file of standard operators (opset 20, IR 10), weights inside."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from exporter.circuit import Align
from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.graph.author import GraphAuthor
from exporter.graph_options import GraphOptions
from exporter.rewrite import fold_model
from exporter.runtime import ANSWER_IDS_KEY, MAX_LENGTH_KEY, VOCAB_SIZE_KEY

IR_VERSION = 10
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


def export_onnx(
    model: CircuitModel,
    path: str | Path,
    options: GraphOptions = GraphOptions(),  # noqa: B008  # frozen
    *,
    metadata: Mapping[str, str] | None = None,
) -> OnnxDescription:
    """Write `model` to `path`: token ids in, logits (batch, pos, vocab) out.

    Inputs are input_ids (batch, pos) int64 and, but for the form "plain", attention_mask (batch, pos) int64, 0 at
    padding on the left; "past" adds keys and values of earlier calls (see `graph`). Batch is free; pos is free
    but for a plain model with `length`. Folds first, which changes nothing on a model that `rewrite_model`
    made. `metadata` goes into the file's metadata_props, beside the longest sequence that it takes. Raises
    InputError when the weights do not fit into one file (2 GB), or when a model whose constants count from
    the last position is to keep a past.
    """
    if options.form == "past":
        require_growing(by_position=model.length is not None, align=model.align)
    model = fold_model(model)
    n_bytes = sum(tensor.nbytes for tensor in model.parameters())
    if n_bytes > _MAX_BYTES and not options.external_data:
        raise InputError(
            f"the model needs {n_bytes / 1e9:.1f} GB, and one ONNX file holds 2 GB; "
            "give --external-data, or raise alpha so that less survives"
        )
    _require_fit(model, options)
    graph = GraphAuthor(model, options).author()
    known = [n for n in (model.max_length, model.length, options.length) if n is not None]
    props = {**(metadata or {}), MAX_LENGTH_KEY: str(min(known)), VOCAB_SIZE_KEY: str(len(model.W_E))}
    if options.logits == "answers":
        props[ANSWER_IDS_KEY] = json.dumps(list(options.answer_ids))
    written = ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER, metadata_props=props)
    try:
        ir.save(written, path, external_data=f"{Path(path).name}.data" if options.external_data else None)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy writes the weights, and does not say that it was the disk that ended
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    return describe_onnx(path)


def _require_fit(model: CircuitModel, options: GraphOptions) -> None:
    """Raise InputError for options that are not for this model."""
    n_tokens, length = len(model.W_E), model.length or options.length
    for name in ("answer_ids", "vocabulary", "opening"):
        if outside := [token for token in getattr(options, name) or () if not 0 <= token < n_tokens]:
            raise InputError(f"{name} has token {outside[0]}, and this model's go from 0 to {n_tokens - 1}")
    if length is not None and length > model.max_length:
        raise InputError(f"prompts of {length} tokens are longer than the model's {model.max_length} positions")
    if model.length is not None and options.length not in (None, model.length):
        raise InputError(f"length is {options.length}, and this circuit was made for prompts of {model.length} tokens")
    if options.opening and (length is None or len(options.opening) >= length):
        raise InputError(f"an opening of {len(options.opening)} tokens needs longer prompts of one known length")


def require_growing(*, by_position: bool, align: Align) -> None:
    """Raise InputError where means by position move when a token is added, so that no past can be kept."""
    if by_position and align == "right":
        raise InputError(
            "means that count positions from the last token do not fit a growing sequence; "
            "use --align left, --mean global or --ablation zero"
        )


def describe_onnx(path: str | Path) -> OnnxDescription:
    """Read inputs, outputs, opset, IR version and node count of an ONNX file; raises InputError."""
    proto = _load_graph(path)
    return OnnxDescription(
        opset=max((o.version for o in proto.opset_import if o.domain == ""), default=0),
        ir_version=proto.ir_version,
        inputs={value.name: _dims(value) for value in proto.graph.input},
        outputs={value.name: _dims(value) for value in proto.graph.output},
        nodes=len(proto.graph.node),
    )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata_props of an ONNX file; raises InputError."""
    return {prop.key: prop.value for prop in _load_graph(path).metadata_props}


def _load_graph(path: str | Path) -> onnx.ModelProto:
    """The file without the weights that are beside it, which have to be there; raises InputError."""
    if not Path(path).exists():
        raise InputError(f"no file {str(path)!r}; give an ONNX file")
    try:
        proto = onnx.load(path, load_external_data=False)
        ends = _find_ends(proto)
    except Exception as error:  # protobuf and onnx raise many types here, all of which mean the same
        raise InputError(f"{path} is not a readable ONNX file ({str(error).splitlines()[0][:120]})") from error
    for name, end in ends.items():
        beside = Path(path).parent / name
        if not beside.is_file() or beside.stat().st_size < end:
            what = "is too short" if beside.is_file() else "is not there"
            raise InputError(
                f"{path} has its weights in {name}, which {what}; put the two side by side, or export again"
            )
    return proto


def _find_ends(proto: onnx.ModelProto) -> dict[str, int]:
    """Where the weights end in each file beside the graph."""
    ends: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            known = {entry.key: entry.value for entry in tensor.external_data}
            end = int(known.get("offset", 0)) + int(known.get("length", 0))
            ends[known["location"]] = max(ends.get(known["location"], 0), end)
    return ends


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
