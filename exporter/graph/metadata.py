"""The metadata_props of an exported ONNX file: its origin (task, model, circuit), and what callers need to run it."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.circuit import Circuit, SearchRecord
from exporter.errors import InputError
from exporter.files import parse_json
from exporter.files.onnx_file import OnnxFile, read_onnx
from exporter.graph.options import GraphOptions

SCHEMA: Literal[1] = 1
PREFIX = "export_circuit."
MAX_LENGTH_KEY = f"{PREFIX}max_length"  # the longest sequence, in tokens, that the file accepts
VOCAB_SIZE_KEY = f"{PREFIX}vocab_size"  # size of the dense model's vocabulary
ANSWER_IDS_KEY = f"{PREFIX}answer_token_ids"  # JSON list: the token id of each logit, where they are not all
LABELS_KEY = f"{PREFIX}labels"  # JSON list: the name of each class, for logits="classes"
SURGERY_KEY = f"{PREFIX}surgery"  # sha256 of the surgery, where weights were healed: it lies beside the file
PROCESSORS_KEY = f"{PREFIX}int8_processors"  # on which an int8 file's sums are exact: see `exporter.graph.int8`
TEMPLATE_KEY = f"{PREFIX}template"  # JSON: the text before and after a user's text in each prompt, if there is such
EXAMPLES_KEY = f"{PREFIX}examples"  # JSON: some prompts and the circuit's answers, see `Examples`

_MOST_UNITS = 2048  # layers, or heads of one layer: a larger number is damage, and too large for a head map


class Plain(BaseModel):
    """Base of metadata models: frozen; accepts unknown fields, which a later version may add."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class TaskInfo(Plain):
    """The task, and the parameters that rebuild its sets; sha256 is over the token ids of all sets."""

    name: str
    parameters: dict[str, Any]
    sha256: str


class ModelInfo(Plain):
    """The dense model. sha256 is over its weight files; d_mlp: hidden units of an MLP, None in older files."""

    name: str
    revision: str | None
    sha256: str
    family: str
    n_layers: int = Field(ge=0, le=_MOST_UNITS)
    n_heads: int = Field(ge=0, le=_MOST_UNITS)
    d_mlp: int | None = Field(None, ge=0)


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that influence the exported file, by name."""
    found = {"python": platform.python_version()}
    for package in ("export-circuit", "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Origin:
    """The origin that an ONNX file's metadata_props record: enough to rebuild and verify the file.

    surgery: the sha256 of the surgery beside the file that healed weights are in; None where they are the original's.
    """

    task: TaskInfo
    model: ModelInfo
    circuit: Circuit
    record: SearchRecord = field(default_factory=SearchRecord)
    options: GraphOptions = field(default_factory=GraphOptions)
    surgery: str | None = None

    def to_metadata(self) -> dict[str, str]:
        """JSON text by metadata key; of the search's steps and what it timed only the manifest says more."""
        left_out = ("trace", "path", "latency")
        record = {key: value for key, value in self.record.to_json().items() if key not in left_out}
        circuit = self.circuit.to_json() | record
        parts = {"task": self.task.model_dump(), "model": self.model.model_dump(), "circuit": circuit}
        parts["options"] = self.options.to_json()
        return {
            f"{PREFIX}schema": str(SCHEMA),
            **({} if self.surgery is None else {SURGERY_KEY: self.surgery}),
            **{f"{PREFIX}{key}": json.dumps(value, sort_keys=True) for key, value in parts.items()},
            f"{PREFIX}versions": json.dumps(collect_versions(), sort_keys=True),
        }

    @classmethod
    def read(cls, path: str | Path) -> Origin:
        """From an ONNX file. Raises InputError: export-circuit did not write it, or its metadata is damaged."""
        return cls.of(read_onnx(path))

    @classmethod
    def of(cls, file: OnnxFile) -> Origin:
        """`read` for a file that is open already. Raises InputError as `read` does."""
        path, found = file.path, file.metadata
        if found.get(f"{PREFIX}schema") != str(SCHEMA):
            raise InputError(f"{path} does not say which circuit it is; give an ONNX file that export-circuit wrote")
        try:
            circuit = parse_json(found[f"{PREFIX}circuit"])
            return cls(
                task=TaskInfo.model_validate_json(found[f"{PREFIX}task"]),
                model=ModelInfo.model_validate_json(found[f"{PREFIX}model"]),
                circuit=Circuit.from_json(circuit),
                record=SearchRecord.from_json(circuit),
                options=GraphOptions.from_json(parse_json(found.get(f"{PREFIX}options", "{}"))),
                surgery=_read_hash(found.get(SURGERY_KEY)),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the metadata of {path} is damaged ({error!r:.100}); export it again") from error


def _read_hash(text: str | None) -> str | None:
    """A sha256 that becomes part of a file's name; raises ValueError for what is none."""
    if text is not None and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"no sha256: {text[:80]!r}")
    return text
