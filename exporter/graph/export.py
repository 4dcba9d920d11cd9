"""Write a CircuitModel as an ONNX file, weights inside or in a file beside it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from exporter.checks import require_type
from exporter.circuit import Align
from exporter.errors import InputError
from exporter.files import weights_name
from exporter.files.onnx_file import read_onnx
from exporter.graph.author import GraphAuthor
from exporter.graph.description import OnnxDescription, describe_onnx
from exporter.graph.int8 import STORED
from exporter.graph.metadata import ANSWER_IDS_KEY, LABELS_KEY, MAX_LENGTH_KEY, PROCESSORS_KEY, VOCAB_SIZE_KEY
from exporter.graph.options import OPSETS, GraphOptions
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.rewrite.folds import fold_model

PRODUCER = "export-circuit"
_MAX_BYTES = 2**31 - 2**20  # of weights: protobuf's limit is 2 GiB, less 1 MiB for the graph


def export_onnx(
    model: CircuitModel,
    path: str | Path,
    options: GraphOptions = GraphOptions(),  # noqa: B008  # frozen
    *,
    metadata: Mapping[str, str] | None = None,
    scope: Scope | None = None,
) -> OnnxDescription:
    """Write `model` to `path`: token ids in; logits out, in the shape that `GraphOptions` says.

    Inputs: input_ids (batch, pos) int64; except in the form "plain", attention_mask (batch, total) int64, 0 at padding
    on the left; in "past", also keys and values of earlier calls (see `exporter.graph.author`). Batch is free; pos is
    free unless the form is "plain" and a length is given. The model is folded first (no change to what `rewrite_model`
    returns). `metadata` is added to the file's metadata_props; `scope` (`fit_scope`) goes with options.guard. Raises
    InputError: arguments of a wrong type, options that do not fit the model, a path that cannot be written, weights
    above 2 GB without external_data, or "past" for a model whose constants count positions from the last token.
    """
    require_type("model", model, CircuitModel)
    require_type("options", options, GraphOptions)
    require_type("path", path, str, Path)
    require_type("scope", scope, Scope, type(None))
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise InputError(f"cannot write {str(path)!r}: give the name of a file in a folder that is there")
    for key, value in (metadata or {}).items():
        require_type("each of metadata's keys", key, str)
        require_type(f"metadata's {key}", value, str)
    if options.form == "past":
        require_growing(by_position=model.length is not None, align=model.align)
    model = fold_model(model)
    if not options.external_data:
        require_one_file(count_bytes(model))
    _require_fit(model, options, scope)
    graph = GraphAuthor(model, options).author(scope)
    props = {**(metadata or {}), **_describe_itself(model, options)}
    written = ir.Model(graph, ir_version=OPSETS[options.opset], producer_name=PRODUCER, metadata_props=props)
    try:
        _save(written, Path(path), external_data=options.external_data)
    except OSError as error:
        if error.errno is not None:
            raise
        # a full disk: numpy, which writes the weights, raises an OSError without errno
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    return describe_onnx(path)


def _describe_itself(model: CircuitModel, options: GraphOptions) -> dict[str, str]:
    """What a caller of the file has to know, by metadata key."""
    known = [n for n in (model.max_length, model.length, options.length) if n is not None]
    props = {MAX_LENGTH_KEY: str(min(known)), VOCAB_SIZE_KEY: str(len(model.W_E))}
    if options.answers_only:
        props[ANSWER_IDS_KEY] = json.dumps(list(options.answer_ids))
    if options.precision == "int8":
        props[PROCESSORS_KEY] = STORED[options.weight_type].processors
    if options.labels:
        props[LABELS_KEY] = json.dumps(list(options.labels))
    return props


def _save(model: ir.Model, path: Path, *, external_data: bool) -> None:
    """Write the file; external weights go beside it, under a name with a hash of their content (`weights_name`)."""
    if not external_data:
        ir.save(model, path)
        return
    draft = f"{path.name}.data"
    ir.save(model, path, external_data=draft)
    if not path.with_name(draft).exists():  # all weights are so small that onnx_ir keeps them in the graph
        return
    name = weights_name(path.name, path.with_name(draft))
    path.with_name(draft).replace(path.with_name(name))
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(proto.SerializeToString(deterministic=True))


def list_parts(model: CircuitModel) -> list[str]:
    """What may stay in float32 in an int8 graph, see `GraphOptions.in_fp32`."""
    return ["W_E", *(sublayer.name for sublayer in model.sublayers()), "unembed"]


def count_bytes(model: CircuitModel) -> int:
    """Bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in model.parameters())


def fits_one_file(n_bytes: int) -> bool:
    """Whether n_bytes of weights fit into one ONNX file with the graph."""
    return n_bytes <= _MAX_BYTES


def require_one_file(n_bytes: int) -> None:
    """Raises InputError: n_bytes of weights do not fit into one ONNX file."""
    if not fits_one_file(n_bytes):
        raise InputError(
            f"the model needs {n_bytes / 1e9:.1f} GB, and one ONNX file holds 2 GB; "
            "give --external-data, or raise alpha so that less survives"
        )


def _require_fit(model: CircuitModel, options: GraphOptions, scope: Scope | None) -> None:
    """Raise InputError for tokens, lengths or parts in the options, or a scope, that do not fit the model."""
    if options.guard != (scope is not None):
        raise InputError("options.guard and a scope go together; give both or neither")
    if scope is not None and len(scope.directions) != model.W_E.shape[1]:
        raise InputError(f"the scope is for residuals of {len(scope.directions)} dimensions, not {model.W_E.shape[1]}")
    parts = list_parts(model)
    if unknown := [part for part in options.in_fp32 if part not in parts]:
        raise InputError(f"in_fp32 has {unknown[0]!r:.60}, and the parts of this model are {', '.join(parts)}")
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
    """Raises InputError: replacements differ by position and count from the last token.

    Each new token would then change the replacements at earlier positions, and cached keys and values be wrong.
    """
    if by_position and align == "right":
        raise InputError(
            "means that count positions from the last token do not fit a growing sequence; "
            "use --align left, --mean global or --ablation zero"
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata_props of an ONNX file. Raises InputError: `path` is no readable ONNX file."""
    return read_onnx(path).metadata
