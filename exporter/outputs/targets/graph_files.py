"""Put a bundle's own ONNX file under the names that its targets want, with its weights under theirs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from exporter.errors import InputError
from exporter.files.onnx_file import iterate_tensors, read_onnx
from exporter.graph.metadata import Origin
from exporter.graph.options import GraphOptions
from exporter.outputs.manifest import ExportInfo
from exporter.outputs.targets.target import BundleTarget, GraphFile


def list_graphs(targets: Iterable[BundleTarget], model: str) -> dict[str, GraphFile]:
    """The ONNX files that targets want beside the bundle's own, by name. `model` names the model for servers."""
    wanted = [graph for target in targets for graph in target.graphs(model)]
    found: dict[str, GraphFile] = {}
    for graph in wanted:
        assert found.setdefault(graph.name, graph) == graph, f"two targets want different files {graph.name}"
    return found


def place_graphs(model: Path, export: ExportInfo, wanted: Mapping[str, GraphFile]) -> dict[str, ExportInfo]:
    """Link a bundle's model.onnx to each name where it is itself what is wanted; returns those names."""
    options = Origin.read(model).options if wanted else GraphOptions()
    placed = {name: graph for name, graph in wanted.items() if graph.adapt(options) == options}
    for name, graph in placed.items():
        place_graph(model, model.parent / name, weights=graph.weights_name)
    return dict.fromkeys(placed, export)


def place_graph(source: Path, target: Path, *, weights: str | None = None) -> None:
    """Link or copy an ONNX file and its weights; `weights` is a name for those, None for the one that they have.

    Links are hard ones: they take no space, and a copy of the folder anywhere holds plain files. Raises InputError for
    a source that is no ONNX file, or that has its weights in several files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    file = read_onnx(source)
    if not file.weights or weights in (None, file.weights[0].name):
        for path in file.weights:
            link(path, target.parent / path.name)
        link(source, target)
        return
    if len(file.weights) > 1:
        raise InputError(f"{source} has its weights in {len(file.weights)} files; export it again")
    link(file.weights[0], target.parent / weights)
    for tensor in iterate_tensors(file.proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = weights
    target.write_bytes(file.proto.SerializeToString(deterministic=True))


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
