"""Say what an exported file is, from the file itself and from the manifest beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.circuit import Circuit, SearchRecord
from exporter.errors import InputError
from exporter.files.onnx_file import read_onnx
from exporter.files.reading import read_steadily
from exporter.graph.description import OnnxDescription, describe_graph
from exporter.graph.metadata import ModelInfo, Origin, TaskInfo
from exporter.outputs.manifest import FileInfo, Manifest


@dataclass(frozen=True)
class Inspection:
    """What a file is. `manifest` is None where there is none that describes this very file."""

    path: Path
    task: TaskInfo
    model: ModelInfo
    circuit: Circuit
    record: SearchRecord
    onnx: OnnxDescription
    manifest: Manifest | None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest where there is one, else what the file says."""
        if self.manifest is not None:
            return self.manifest.to_dict()
        return {
            "task": self.task.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "circuit": self.circuit.to_json() | self.record.to_json(),
            "onnx": asdict(self.onnx),
            "note": self.note,
        }


def inspect_file(path: Path) -> Inspection:
    """Read `model.onnx` or `model.json`; raises InputError for anything else."""
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give the model.onnx or model.json in it")
    if path.suffix == ".json":
        manifest = Manifest.load(path)
        return Inspection(
            path, manifest.task, manifest.model, manifest.get_circuit(), manifest.get_record(), manifest.onnx, manifest
        )
    return read_steadily(path, lambda: _inspect_graph(path))


def _inspect_graph(path: Path) -> Inspection:
    if not path.exists():
        raise InputError(f"no file {str(path)!r}; give a model.onnx or a model.json that export-circuit wrote")
    file = read_onnx(path)
    origin, beside, note = Origin.of(file), path.with_suffix(".json"), None
    manifest: Manifest | None = None
    if beside.exists():
        manifest = Manifest.load(beside)
        if manifest.files.get(path.name) != FileInfo(bytes=file.bytes, sha256=file.sha256):
            manifest, note = None, f"{beside.name} does not describe this file (its sha256 is another)"
    return Inspection(
        path, origin.task, origin.model, origin.circuit, origin.record, describe_graph(file.proto), manifest, note
    )
