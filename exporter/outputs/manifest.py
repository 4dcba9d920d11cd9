"""The manifest: what an exported file is, where it came from, and how far to trust it.

Plain data that round-trips through JSON (docs/design.md, section 7). The essentials also go into the ONNX
file's metadata_props, so that the file alone says what it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from exporter.circuit import Circuit, SearchRecord
from exporter.errors import InputError
from exporter.evidence.controls import Controls
from exporter.evidence.figures import Evaluation
from exporter.evidence.footprint import Memory
from exporter.evidence.guarded import GuardFigures
from exporter.evidence.latency import Latency
from exporter.evidence.shown import ShownAttention, ShownPrompt
from exporter.files import open_regular, read_text
from exporter.graph.description import OnnxDescription
from exporter.graph.int8 import STORED
from exporter.graph.metadata import SCHEMA, ModelInfo, Plain, TaskInfo
from exporter.graph.options import GraphOptions
from exporter.tasks.template import Template
from exporter.verify.figures import Exactness, Served


class Size(Plain):
    """Non-embedding parameters of both models; constants are counted apart; reduction is 1 - circuit / dense."""

    dense: int
    circuit: int
    constants: int
    reduction: float


class FileInfo(Plain):
    """One file that the job left, by its name."""

    bytes: int
    sha256: str


class ExportInfo(Plain):
    """What the file leaves out and in which numbers it computes, as `GraphOptions` has it, and how it answers.

    answer_ids: the token of each logit, where not all are there. labels: a classifier's classes by name. template:
    the text around a user's text in every prompt, None without one. vocabulary: how many embeddings are kept, None for
    all. opening: how many first tokens were computed at export. batch_dependent: whether a prompt's logits can depend
    on the others in its batch, beyond rounding. in_fp32: parts of an int8 file that stay in float32, as `GraphOptions`
    names them. processors: on which an int8 file's sums are exact, `all` or in words; None in other precisions, and in
    older manifests. served: the file's own figures on the test set.
    """

    logits: str
    answer_ids: list[int]
    labels: list[str] = Field(default_factory=list)
    template: Template | None = None
    vocabulary: int | None
    opening: int
    target: str
    precision: str
    scales: str
    weight_type: str
    batch_dependent: bool
    in_fp32: list[str] = Field(default_factory=list)
    processors: str | None = None
    served: Served

    @classmethod
    def of(cls, options: GraphOptions, served: Served, template: Template | None = None) -> ExportInfo:
        """From the options that a file was made with."""
        int8 = options.precision == "int8"
        return cls(
            logits=options.logits,
            answer_ids=list(options.answer_ids),
            labels=list(options.labels),
            template=template,
            vocabulary=None if options.vocabulary is None else len(options.vocabulary),
            opening=len(options.opening),
            target=options.target,
            precision=options.precision,
            scales=options.scales if int8 else "none",
            weight_type=options.weight_type if int8 else options.precision,
            batch_dependent=int8 and options.scales == "tensor",
            in_fp32=list(options.in_fp32),
            processors=STORED[options.weight_type].processors if int8 else None,
            served=served,
        )


class Manifest(Plain):
    """Everything that is known of one exported circuit. Seconds are by stage, differences are of logits.

    `latency` compares with the dense model exported the same way, a file of `dense_onnx_bytes`.
    `alpha_sweep` is where a task's own alpha comes from; None where alpha was given, or swept for something else.
    `memory` is measured for a report only. `command` is what does the job again. `prompts` and `attention` are for
    reading (`exporter.outputs.report`). Older manifests have none of the four.
    `controls` are those of `--evidence full`, None without it; `guard` is of `--guard`.
    `targets` are the runtimes that a bundle was made for, where the user named some; `graphs` are its other ONNX files
    by name, with folders.
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
    memory: list[Memory] = Field(default_factory=list)
    command: str | None = None
    prompts: list[ShownPrompt] = Field(default_factory=list)
    attention: ShownAttention | None = None
    controls: Controls | None = None
    targets: list[str] = Field(default_factory=list)
    graphs: dict[str, ExportInfo] = Field(default_factory=dict)
    guard: GuardFigures | None = None

    def get_circuit(self) -> Circuit:
        """The circuit as its own type."""
        return Circuit.from_json(self.circuit)

    def get_record(self) -> SearchRecord:
        """How the circuit was found."""
        return SearchRecord.from_json(self.circuit)

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
        manifest.get_record()
        return manifest

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest file; raises InputError."""
        try:
            return cls.from_json(read_text(path), name=str(path))
        except OSError as error:
            raise InputError(f"cannot read the manifest {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text; give the model.json that the export wrote") from error


def hash_file(path: str | Path) -> FileInfo:
    """Size and sha256 of a file."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(bytes=os.fstat(file.fileno()).st_size, sha256=digest)
