"""Healed weights on disk: the surgery beside a graph, from which the gate and another export start."""

from __future__ import annotations

from pathlib import Path

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.files import is_weights_name, read_json, surgery_name
from exporter.graph.metadata import Origin
from exporter.rewrite.surgery import Surgery


def load_surgery(manifest: Path, circuit: Circuit | None) -> Surgery:
    """The surgery of a healed circuit, from beside the manifest that tells of it. Raises InputError."""
    try:
        files = dict(read_json(manifest)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the circuit in {manifest} was healed, and only its manifest says in which file its weights are; give the "
            "model.json that the export wrote"
        ) from error
    graphs = [name for name in files if str(name).endswith(".onnx")]
    names = [n for n in files if graphs and str(n).endswith(".safetensors") and is_weights_name(str(n), graphs[0])]
    return _load(manifest, names[0] if names else "its surgery", circuit)


def load_surgery_of(path: Path, origin: Origin) -> Surgery | None:
    """The surgery of a healed graph, from beside it; None where weights are the original's. Raises InputError."""
    if origin.surgery is None:
        return None
    surgery = _load(path, surgery_name(path.name, origin.surgery), origin.circuit)
    if surgery.sha256 != origin.surgery:
        raise InputError(f"the healed weights beside {path} are not those it was made from; export it again")
    return surgery


def _load(path: Path, name: str, circuit: Circuit | None) -> Surgery:
    beside = path.with_name(name)
    if not beside.is_file():
        raise InputError(f"the circuit of {path} was healed, and its weights are in {name}, which is not beside it")
    surgery = Surgery.load(beside)
    if surgery.circuit != circuit:
        raise InputError(f"the healed weights in {beside} are of another circuit; export it again")
    return surgery
