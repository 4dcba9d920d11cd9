"""A circuit as plain data: which components stay, and the ablation of the others.

It round-trips through JSON, so that the circuit of a search on one machine can be read, edited by hand, and exported on
another. The decisions of the search are a separate `SearchRecord`; one file may hold both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.checks import take_items
from exporter.circuit.ablation import Ablation
from exporter.circuit.components import MLP, Component, Head, Neuron
from exporter.circuit.fields import (
    describe_misfit,
    name_kind,
    read_integers,
    read_list,
    read_neurons,
    require_once,
    take_head,
    take_layer,
    take_neurons,
)
from exporter.circuit.graph_reader import is_graph, read_graph
from exporter.circuit.record import RECORD_KEYS, SearchRecord
from exporter.errors import InputError
from exporter.files import read_json


@dataclass(frozen=True)
class Circuit:
    """The heads, MLPs and neurons that stay, and the ablation of the others.

    Heads may be given as pairs (layer, index), MLPs as layers, neurons as a mapping from layers to hidden units, an
    ablation as the name of its kind; components are stored in ascending order. An MLP that stays whole is in `mlps`;
    one that keeps its output bias and some hidden units is in `neurons`; one in neither is removed with its bias.
    Raises InputError: a value of a wrong type, a negative index, a component given twice, an MLP in both fields.
    """

    heads: tuple[Head, ...]
    mlps: tuple[int, ...]
    ablation: Ablation = field(default_factory=Ablation)
    neurons: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        heads = [take_head(head) for head in take_items("heads", self.heads)]
        mlps = [m.layer if isinstance(m, MLP) else take_layer(m) for m in take_items("mlps", self.mlps)]
        neurons = take_neurons(self.neurons)
        require_once("heads", [str(head) for head in heads])
        require_once("mlps", [str(MLP(layer)) for layer in mlps])
        require_once("mlps and neurons", [str(MLP(layer)) for layer in (*mlps, *(layer for layer, _ in neurons))])
        for layer, units in neurons:
            require_once("neurons", [str(Neuron(layer, unit)) for unit in units])
        object.__setattr__(self, "ablation", Ablation.take(self.ablation))
        object.__setattr__(self, "heads", tuple(sorted(heads)))
        object.__setattr__(self, "mlps", tuple(sorted(mlps)))
        object.__setattr__(self, "neurons", tuple(sorted((layer, tuple(sorted(units))) for layer, units in neurons)))

    @property
    def fixed_length(self) -> bool:
        """Whether replacements differ by position, which limits sequences to the length of the patching prompts."""
        return self.ablation.fixed_length

    @property
    def components(self) -> tuple[Component, ...]:
        """The heads and MLPs that stay, also in part."""
        layers = {*self.mlps, *(layer for layer, units in self.neurons if units)}
        return (*self.heads, *(MLP(layer) for layer in sorted(layers)))

    @property
    def n_neurons(self) -> int:
        """The number of hidden units kept in MLPs that are kept in part."""
        return sum(len(units) for _, units in self.neurons)

    def keeps(self, component: Component) -> bool:
        """Whether the component stays. An MLP stays only if it is whole; a neuron also stays with a whole MLP."""
        if isinstance(component, Head):
            return component in self.heads
        if isinstance(component, MLP):
            return component.layer in self.mlps
        units = self.neurons_of(component.layer)
        return component.layer in self.mlps if units is None else component.index in units

    def keeps_any(self, component: Component) -> bool:
        """Whether the component stays, be it an MLP with some of its hidden units only."""
        return self.keeps(component) or (isinstance(component, MLP) and bool(self.neurons_of(component.layer)))

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """Indices of the heads that stay in one layer, ascending."""
        return tuple(head.index for head in self.heads if head.layer == layer)

    def neurons_of(self, layer: int) -> tuple[int, ...] | None:
        """Hidden units that stay in one layer's MLP, ascending; None where the MLP is kept or removed as a whole."""
        return dict(self.neurons).get(layer)

    def check_fits(self, *, n_layers: int, n_heads: int, d_mlp: int) -> None:
        """Raise InputError when a model of this many layers, heads a layer and hidden units lacks a component."""
        layers = f"the model has layers 0..{n_layers - 1}"
        for head in self.heads:
            if not (head.layer < n_layers and head.index < n_heads):
                raise describe_misfit(f"head {head}", f"{layers} and heads 0..{n_heads - 1}")
        for layer in (*self.mlps, *(layer for layer, _ in self.neurons)):
            if layer >= n_layers:
                raise describe_misfit(f"MLP {MLP(layer)}", layers)
        for layer, units in self.neurons:
            if units and units[-1] >= d_mlp:
                raise describe_misfit(
                    f"neuron {Neuron(layer, units[-1])}", f"the model has neurons 0..{d_mlp - 1} in each MLP"
                )

    def to_json(self) -> dict[str, Any]:
        """The fields of a circuit file (docs/design.md, section 7); `neurons` only if it is not empty."""
        neurons = {"neurons": {str(layer): list(units) for layer, units in self.neurons}} if self.neurons else {}
        return {
            "heads": [[head.layer, head.index] for head in self.heads],
            "mlps": list(self.mlps),
            **neurons,
            **self.ablation.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any) -> Circuit:
        """Read what `to_json` wrote, or a hand-written object with at least `heads` and `mlps`.

        Ignores the fields of a search record (`SearchRecord.from_json`). Raises InputError: other fields, missing ones,
        or wrong values.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a circuit is a JSON object with 'heads' and 'mlps', not {name_kind(data)}")
        if unknown := sorted(set(data) - _KEYS - RECORD_KEYS):
            known = ", ".join(sorted(_KEYS | RECORD_KEYS))
            raise InputError(f"unknown field {unknown[0]!r} in the circuit; known: {known}")
        missing = [key for key in ("heads", "mlps") if key not in data]
        if missing:
            raise InputError(f"the circuit has no {missing[0]!r}; give heads as [[layer, head], ...] and mlps as [...]")
        return cls(
            heads=tuple(Head(*read_integers(pair, "a head", 2)) for pair in read_list(data["heads"], "heads")),
            mlps=read_integers(data["mlps"], "mlps", None),
            ablation=Ablation.from_json(data),
            neurons=read_neurons(data.get("neurons", {})),
        )

    def save(self, path: str | Path, record: SearchRecord | None = None) -> None:
        """Write the circuit as one JSON file, with the record of its search if one is given. Raises OSError."""
        data = self.to_json() | (record.to_json() if record is not None else {})
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """The circuit of a circuit file, of a manifest or of a graph file. Raises InputError."""
        return load_circuit(path)[0]


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


_KEYS = {"heads", "mlps", "neurons", *Ablation().to_json()}
