"""What Triton checks of a model repository before it serves a model, from its public sources.

Its schema is model_config.proto, which the wheel of Triton's client ships compiled. The rules are those of Triton's
core (`ValidateModelConfig`, `ValidateModelIOConfig`, the batchers) and of its ONNX Runtime backend (`ValidateInputs`,
`ValidateOutputs`, `CompareDimsSupported`).
"""

from __future__ import annotations

import importlib.util
import math
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(bool)": "TYPE_BOOL",
}


def load_schema() -> ModuleType:
    """The one module of the client that needs neither gRPC nor the rest of it."""
    try:
        files = metadata.files("tritonclient") or []
    except metadata.PackageNotFoundError:
        pytest.skip("needs the package tritonclient, which ships Triton's schema")
    path = next(file for file in files if str(file).endswith("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("triton_model_config", str(path.locate()))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RefusalError(Exception):
    """Triton would not load this."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise RefusalError(message)


class Repository:
    """One model of a repository, loaded as Triton loads it."""

    def __init__(self, folder: Path) -> None:
        from google.protobuf import text_format

        schema = load_schema()
        self.folder = folder
        self.config: Any = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
        self.type_name = schema.DataType.Name
        session_path = folder / "1" / (self.config.default_model_filename or "model.onnx")
        self.session = onnxruntime.InferenceSession(str(session_path), providers=["CPUExecutionProvider"])
        self.labels: dict[str, list[str]] = {}
        self.check()

    def check(self) -> None:
        config = self.config
        require(config.name == self.folder.name, "the name is not the folder's")
        require(config.backend == "onnxruntime", "another backend")
        require(config.max_batch_size >= 0, "max_batch_size is negative")
        for size in config.dynamic_batching.preferred_batch_size:
            require(0 < size <= config.max_batch_size, "preferred size above max_batch_size")
        require(not config.HasField("dynamic_batching") or config.max_batch_size > 0, "batching without a maximum")
        for io in (*config.input, *config.output):
            self._check_io(io)
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        require({io.name for io in config.input} == set(inputs), "an input is missing, or one too many")
        for io in config.input:
            self._compare(io, inputs, exact=False)
        for io in config.output:
            require(io.name in outputs, f"no output {io.name}")
            self._compare(io, outputs, exact=True)
            if io.label_filename:
                self.labels[io.name] = (self.folder / io.label_filename).read_text().splitlines()

    def _check_io(self, io: Any) -> None:
        require(io.name and self.type_name(io.data_type) != "TYPE_INVALID", "no name or type")
        require(len(io.dims) > 0, f"{io.name} must specify dims")
        require(all(dim == -1 or dim >= 1 for dim in io.dims), f"{io.name} has a dimension below 1")
        if io.HasField("reshape"):
            shape = list(io.reshape.shape)
            require(shape or self.config.max_batch_size > 0, "empty reshape without batches")
            require(all(dim == -1 or dim >= 1 for dim in shape), "reshape has a dimension below 1")
            require(-1 in io.dims or math.prod(io.dims) == math.prod(shape), "different size for dims and reshape")

    def _compare(self, io: Any, values: dict[str, Any], *, exact: bool) -> None:
        value = values[io.name]
        require(self.type_name(io.data_type) == TYPES[value.type], f"{io.name} has another type")
        model = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
        if self.config.max_batch_size > 0:
            require(model and model[0] == -1, f"the first dimension of {io.name} must be -1")
            dims = [-1, *dims]
        require(len(model) == len(dims), f"{io.name} has {len(model)} dimensions, not {len(dims)}")
        for ours, theirs in zip(dims, model, strict=True):
            require(ours == theirs or (theirs == -1 and not exact), f"{io.name} has shape {model}, not {dims}")

    def infer(self, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Each request's outputs, after all have run as one batch; a request is a batch of its own of at least one."""
        config = self.config
        rows = [len(next(iter(request.values()))) for request in requests]
        require(sum(rows) <= config.max_batch_size, "more than max_batch_size")
        require(config.HasField("dynamic_batching") or len(requests) == 1, "this model does not batch requests")
        feeds = {io.name: np.concatenate([request[io.name] for request in requests]) for io in config.input}
        for io in config.input:
            shape = list(feeds[io.name].shape[1:])
            fits = len(shape) == len(io.dims) and all(d in (-1, n) for d, n in zip(io.dims, shape, strict=True))
            require(fits, f"unexpected shape for input {io.name}")
        found = self.session.run([io.name for io in config.output], feeds)
        ends = np.cumsum(rows)[:-1]
        split = {}
        for io, array in zip(config.output, found, strict=True):
            shaped = array.reshape(len(array), *io.dims) if -1 not in io.dims else array
            split[io.name] = np.split(shaped, ends)
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(requests))]

    def classify(self, logits: np.ndarray) -> str:
        """What the classification extension says of one prompt's logits: the label at the highest one's place."""
        return self.labels["logits"][int(logits.reshape(-1).argmax())]
