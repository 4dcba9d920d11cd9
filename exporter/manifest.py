"""The manifest: what an exported file is, where it came from, and how far to trust it.

Plain data that round-trips through JSON (DESIGN section 7). The essentials also go into the ONNX
file's metadata_props, so that the file alone says what it is.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.evaluate import Evaluation
from exporter.graph_options import GraphOptions
from exporter.measure import Latency
from exporter.onnx_export import OnnxDescription, read_metadata
from exporter.served import Served
from exporter.verify import Exactness

SCHEMA: Literal[1] = 1
_PREFIX = "export_circuit."


class _Plain(BaseModel):
    """Frozen, and open to fields that a later version adds."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class TaskInfo(_Plain):
    """The task and what it takes to build its sets again; sha256 is over the token ids of all of them."""

    name: str
    parameters: dict[str, Any]
    sha256: str


class ModelInfo(_Plain):
    """The dense model; sha256 is over its weight files."""

    name: str
    revision: str | None
    sha256: str
    family: str
    n_layers: int
    n_heads: int


class Size(_Plain):
    """Non-embedding parameters of both models; constants are counted apart; reduction is 1 - circuit / dense."""

    dense: int
    circuit: int
    constants: int
    reduction: float


class FileInfo(_Plain):
    """One file that the job left, by its name."""

    bytes: int
    sha256: str


class ExportInfo(_Plain):
    """What the file leaves out and in which numbers it computes, as `GraphOptions` has it, and how it answers.

    answer_ids: the token of each logit, where not all are there. vocabulary: how many embeddings are kept, None for
    all. opening: how many first tokens were computed at export. batch_dependent: whether a prompt's logits can depend
    on the others in its batch, beyond rounding. served: the file's own figures on the test set.
    """

    logits: str
    answer_ids: list[int]
    vocabulary: int | None
    opening: int
    target: str
    precision: str
    scales: str
    weight_type: str
    batch_dependent: bool
    served: Served

    @classmethod
    def of(cls, options: GraphOptions, served: Served) -> ExportInfo:
        """From the options that a file was made with."""
        int8 = options.precision == "int8"
        return cls(
            logits=options.logits,
            answer_ids=list(options.answer_ids),
            vocabulary=None if options.vocabulary is None else len(options.vocabulary),
            opening=len(options.opening),
            target=options.target,
            precision=options.precision,
            scales=options.scales if int8 else "none",
            weight_type=options.weight_type if int8 else options.precision,
            batch_dependent=int8 and options.scales == "tensor",
            served=served,
        )


class Manifest(_Plain):
    """Everything that is known of one exported circuit. Seconds are by stage, differences are of logits.

    `latency` compares with the dense model exported the same way, a file of `dense_onnx_bytes`.
    `alpha_sweep` is where a task's own alpha comes from; None where alpha was given, or swept for something else.
    """

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    task: TaskInfo
    model: ModelInfo
    circuit: dict[str, Any]
    alpha_sweep: dict[str, Any] | None
    size: Size
    test: Evaluation
    ood: dict[str, Evaluation]
    exactness: Exactness
    export: ExportInfo
    onnx: OnnxDescription
    latency: list[Latency]
    dense_onnx_bytes: int
    files: dict[str, FileInfo]
    seconds: dict[str, float]
    versions: dict[str, str]
    notes: list[str]

    def get_circuit(self) -> Circuit:
        """The circuit as its own type."""
        return Circuit.from_json(self.circuit)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON-able data."""
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self) -> str:
        """The text of model.json."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str = "manifest") -> Manifest:
        """Read and check a manifest; raises InputError that names the field at fault."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise InputError(f"{name} is not a manifest of schema {SCHEMA}: {field}: {first['msg']}") from error
        manifest.get_circuit()
        return manifest

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest file; raises InputError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), name=str(path))
        except OSError as error:
            raise InputError(f"cannot read the manifest {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text; give the model.json that the export wrote") from error


def hash_file(path: str | Path) -> FileInfo:
    """Size and sha256 of a file."""
    with Path(path).open("rb") as file:
        return FileInfo(bytes=Path(path).stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a file holds."""
    found = {"python": platform.python_version()}
    for package in ("export-circuit", "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Origin:
    """What an ONNX file says of itself in its metadata_props: enough to build and check it again."""

    task: TaskInfo
    model: ModelInfo
    circuit: Circuit
    options: GraphOptions = field(default_factory=GraphOptions)

    def to_metadata(self) -> dict[str, str]:
        """JSON by key; the search's trace stays in the manifest."""
        circuit = {key: value for key, value in self.circuit.to_json().items() if key != "trace"}
        parts = {"task": self.task.model_dump(), "model": self.model.model_dump(), "circuit": circuit}
        parts["options"] = self.options.to_json()
        return {
            f"{_PREFIX}schema": str(SCHEMA),
            **{f"{_PREFIX}{key}": json.dumps(value, sort_keys=True) for key, value in parts.items()},
            f"{_PREFIX}versions": json.dumps(collect_versions(), sort_keys=True),
        }

    @classmethod
    def read(cls, path: str | Path) -> Origin:
        """From an ONNX file; raises InputError for one that export-circuit did not write."""
        found = read_metadata(path)
        if found.get(f"{_PREFIX}schema") != str(SCHEMA):
            raise InputError(f"{path} does not say which circuit it is; give an ONNX file that export-circuit wrote")
        try:
            return cls(
                task=TaskInfo.model_validate_json(found[f"{_PREFIX}task"]),
                model=ModelInfo.model_validate_json(found[f"{_PREFIX}model"]),
                circuit=Circuit.from_json(json.loads(found[f"{_PREFIX}circuit"])),
                options=GraphOptions.from_json(json.loads(found.get(f"{_PREFIX}options", "{}"))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the metadata of {path} is damaged ({error!r:.100}); export it again") from error
