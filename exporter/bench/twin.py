"""A model's twin: the same graph with random weights, rebuilt from some kilobytes, that costs what the model costs.

A speed-up over the dense model moves with the machine, and on one machine with what its neighbours do to memory and
caches: two models that differ in size do not slow down alike. A twin does. So a baseline holds the graph of its model
without the weights, and a later model is timed beside the twin of the earlier one, where a ratio of 1 means
"as fast as it was" on any machine. What a weight's value is changes no time, but for a few constants, which are kept.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import InputError
from exporter.files.onnx_file import count_bytes, is_external, read_external, read_onnx
from exporter.graph.metadata import MAX_LENGTH_KEY, VOCAB_SIZE_KEY

_KEPT = 256  # numbers; what is no larger is kept as it is: shapes, axes, scales, masks
_MOST_GRAPH = 1 << 26  # bytes
_MOST_WEIGHTS = 1 << 31  # bytes, as one ONNX file has
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_QUANTIZED = (TensorProto.INT8, TensorProto.UINT8)
_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def strip_weights(path: str | Path) -> str:
    """An ONNX file's graph without its weights' numbers, as text."""
    model = read_onnx(path).proto
    for tensor in filter(is_external, model.graph.initializer):
        if math.prod(tensor.dims) <= _KEPT:
            tensor.raw_data = read_external(tensor, Path(path).parent)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _KEPT:
            for field in _FIELDS:
                tensor.ClearField(field)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
    props = [prop for prop in model.metadata_props if prop.key in (MAX_LENGTH_KEY, VOCAB_SIZE_KEY)]
    del model.metadata_props[:]
    model.metadata_props.extend(props)
    del model.graph.value_info[:]
    model.doc_string = ""
    return base64.b64encode(zlib.compress(model.SerializeToString(deterministic=True), 9)).decode()


def write_twin(text: str, out: str | Path) -> Path:
    """Write the twin that `strip_weights` described, with random weights. Raises InputError for damaged text."""
    try:
        model = onnx.load_model_from_string(_unpack(text))
        weights = model.graph.initializer
        if any(map(is_external, weights)) or sum(map(count_bytes, weights)) > _MOST_WEIGHTS:
            raise ValueError
    except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, DecodeError) as error:
        raise InputError("the graph in the baseline is damaged; write a new one with --update-baseline") from error
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _KEPT:
            tensor.CopyFrom(_fill(tensor, rng))
    onnx.save(model, out)
    return Path(out)


def _unpack(text: str) -> bytes:
    """The bytes that were packed; ValueError for more than any graph without weights has."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_GRAPH)
    if not unpacker.eof:
        raise ValueError
    return content


def _fill(tensor: TensorProto, rng: np.random.Generator) -> TensorProto:
    """The same tensor with numbers: small ones in floats, any in quantized weights, zeros in indices."""
    shape, kind = tuple(tensor.dims), tensor.data_type
    if kind in _FLOATS:
        numbers = (0.02 * rng.standard_normal(shape, np.float32)).astype(helper.tensor_dtype_to_np_dtype(kind))
    elif kind in _QUANTIZED:
        numbers = rng.integers(-128, 128, shape).astype(np.int8).view(helper.tensor_dtype_to_np_dtype(kind))
    else:
        numbers = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(numbers, tensor.name)
