"""The dense model that an exported file came from, found by what the file says of itself, as an ONNX file."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import InputError
from exporter.files import recover
from exporter.graph_options import GraphOptions
from exporter.loading import LanguageModel, load_model
from exporter.manifest import Origin
from exporter.onnx_export import export_onnx
from exporter.runtime import open_session, read_form


def load_dense(origin: Origin, *, model: str | None = None) -> LanguageModel:
    """The dense model of a file; `model` is where it is now (default: where it was).

    Raises InputError when it is not there, or when its weights are not those the circuit came from.
    """
    loaded = load_model(model or origin.model.name, revision=None if model else origin.model.revision)
    if loaded.sha256 != origin.model.sha256:
        raise InputError(
            f"the weights of {loaded.name} (sha256 {loaded.sha256[:12]}) are not those the circuit came from "
            f"({origin.model.sha256[:12]}); give the right model with --model"
        )
    return loaded


def export_reference(path: str | Path, out: str | Path, *, model: str | None = None) -> Path:
    """Write the dense model of the file at `path` to `out`: fp32, all logits, taking the same inputs.

    Raises InputError for a file that export-circuit did not write, and where `load_dense` does.
    """
    recover(path)
    dense = load_dense(Origin.read(path), model=model).dense
    export_onnx(dense, out, GraphOptions(form=read_form(open_session(path))))
    return Path(out)
