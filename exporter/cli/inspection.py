"""Say what an exported file is, from the file itself and from the manifest beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.files import recover
from exporter.manifest import Manifest, ModelInfo, Origin, TaskInfo, hash_file
from exporter.onnx_export import OnnxDescription, describe_onnx


@dataclass(frozen=True)
class Inspection:
    """What a file is. `manifest` is None where there is none that describes this very file."""

    path: Path
    task: TaskInfo
    model: ModelInfo
    circuit: Circuit
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
            "circuit": self.circuit.to_json(),
            "onnx": asdict(self.onnx),
            "note": self.note,
        }


def inspect_file(path: Path) -> Inspection:
    """Read `model.onnx` or `model.json`; raises InputError for anything else."""
    recover(path.with_suffix(".onnx"))
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}; give a model.onnx or a model.json that export-circuit wrote")
    if path.suffix == ".json":
        manifest = Manifest.load(path)
        return Inspection(path, manifest.task, manifest.model, manifest.get_circuit(), manifest.onnx, manifest)
    origin = Origin.read(path)
    beside, note = path.with_suffix(".json"), None
    found: Manifest | None = None
    if beside.is_file():
        found = Manifest.load(beside)
        if found.files.get(path.name) != hash_file(path):
            found, note = None, f"{beside.name} does not describe this file (its sha256 is another)"
    return Inspection(path, origin.task, origin.model, origin.circuit, describe_onnx(path), found, note)
