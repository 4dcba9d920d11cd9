"""Files that a circuit is read from: circuit files, manifests, points of a sweep, and graph files of other projects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.circuit.circuit import Circuit
from exporter.circuit.components import Component
from exporter.circuit.graph_reader import is_graph, read_graph
from exporter.circuit.record import SearchRecord
from exporter.errors import InputError
from exporter.files import read_json


@dataclass(frozen=True)
class CircuitFile:
    """What a file says of a circuit.

    scores: by component, the higher the more it matters: what its removal cost in a search, or the magnitude that a
    graph file gives. losses: what of a graph file the circuit does not keep, in words. model: the source of the
    model that a manifest names.
    """

    circuit: Circuit
    record: SearchRecord
    scores: Mapping[Component, float]
    losses: tuple[str, ...] = ()
    model: str | None = None


def read_circuit_file(path: str | Path) -> CircuitFile:
    """What a circuit file, a manifest, a point of a sweep (`sweep.json#3`) or a graph file says.

    Nodes of a graph file are taken as whole (docs/exchange.md). Raises InputError: the file cannot be read, is not
    JSON, or holds no such circuit.
    """
    file, point = _split_point(path)
    try:
        data = read_json(file)
    except OSError as error:
        raise InputError(f"cannot read the circuit {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give a circuit file, a manifest or a graph file") from error
    model = None
    try:
        if point is not None or (isinstance(data, Mapping) and "sweep" in data):
            data = _find_point(data, point)
        elif isinstance(data, Mapping) and "schema" in data and "circuit" in data:
            data, model = data["circuit"], _name_model(data.get("model"))
        if is_graph(data):
            graph = read_graph(data)
            scores = {component: abs(score) for component, score in graph.scores.items()}
            return CircuitFile(Circuit.from_json(graph.circuit), SearchRecord(), scores, graph.losses)
        circuit, record = Circuit.from_json(data), SearchRecord.from_json(data)
        return CircuitFile(circuit, record, record.scores, model=model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_circuit(path: str | Path) -> tuple[Circuit, SearchRecord]:
    """The circuit and the search record of a file.

    Raises InputError: as `read_circuit_file`, or a graph that is no circuit of whole nodes.
    """
    file = read_circuit_file(path)
    if file.losses:
        raise InputError(f"{path}: {file.losses[0]}; write the circuit of whole nodes with `export-circuit convert`")
    return file.circuit, file.record


def _split_point(path: str | Path) -> tuple[str | Path, int | None]:
    """A file, and the number of a point in it where the name ends in one."""
    match = re.fullmatch(r"(.+\.json)#(\d{1,9})", str(path), flags=re.DOTALL)
    return (path, None) if match is None else (match[1], int(match[2]))


def _find_point(data: Any, point: int | None) -> Any:
    """The circuit of a point of a sweep. Raises InputError: no sweep, no such point, or one with healed weights."""
    entries = data.get("points") if isinstance(data, Mapping) else None
    if not isinstance(entries, list):
        raise InputError("is no sweep, and has no points; give the .json file that `export-circuit sweep` wrote")
    found = [e for e in entries if isinstance(e, Mapping) and point is not None and e.get("point") == point]
    if not found:
        raise InputError(f"give a point of the sweep by its number, sweep.json#0 to sweep.json#{len(entries) - 1}")
    circuit = found[0].get("circuit")
    if isinstance(circuit, Mapping) and circuit.get("learning") is not None:
        raise InputError(f"the point is healed, and a sweep keeps no weights; make it again: {found[0].get('command')}")
    return circuit


def _name_model(model: Any) -> str | None:
    """The name in a manifest's `model`, if it has one."""
    name = model.get("name") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else None
