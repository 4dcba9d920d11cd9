"""The dense model that an exported file came from, found by what the file says of itself, as an ONNX file."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import InputError
from exporter.files.reading import read_steadily
from exporter.graph.export import count_bytes, export_onnx, fits_one_file
from exporter.graph.metadata import Origin
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel, load_model
from exporter.runtime.session import open_session, read_form


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
    origin, form = read_steadily(path, lambda: (Origin.read(path), read_form(open_session(path))))
    dense = load_dense(origin, model=model).dense
    large = not fits_one_file(count_bytes(dense))
    export_onnx(dense, out, GraphOptions(form=form, external_data=large))
    return Path(out)
