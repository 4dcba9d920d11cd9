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

from exporter.checks import shorten, take_integer, take_integers, take_items
from exporter.circuit.ablation import Ablation
from exporter.circuit.components import MLP, Component, Head, Neuron
from exporter.circuit.record import RECORD_KEYS, SearchRecord
from exporter.errors import InputError


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
        heads = [_take_head(head) for head in take_items("heads", self.heads)]
        mlps = [m.layer if isinstance(m, MLP) else _take_layer(m) for m in take_items("mlps", self.mlps)]
        neurons = _take_neurons(self.neurons)
        _require_once("heads", [str(head) for head in heads])
        _require_once("mlps", [str(MLP(layer)) for layer in mlps])
        _require_once("mlps and neurons", [str(MLP(layer)) for layer in (*mlps, *(layer for layer, _ in neurons))])
        for layer, units in neurons:
            _require_once("neurons", [str(Neuron(layer, unit)) for unit in units])
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
                raise _misfit(f"head {head}", f"{layers} and heads 0..{n_heads - 1}")
        for layer in (*self.mlps, *(layer for layer, _ in self.neurons)):
            if layer >= n_layers:
                raise _misfit(f"MLP {MLP(layer)}", layers)
        for layer, units in self.neurons:
            if units and units[-1] >= d_mlp:
                raise _misfit(f"neuron {Neuron(layer, units[-1])}", f"the model has neurons 0..{d_mlp - 1} in each MLP")

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
            raise InputError(f"a circuit is a JSON object with 'heads' and 'mlps', not {_kind(data)}")
        if unknown := sorted(set(data) - _KEYS - RECORD_KEYS):
            known = ", ".join(sorted(_KEYS | RECORD_KEYS))
            raise InputError(f"unknown field {unknown[0]!r} in the circuit; known: {known}")
        missing = [key for key in ("heads", "mlps") if key not in data]
        if missing:
            raise InputError(f"the circuit has no {missing[0]!r}; give heads as [[layer, head], ...] and mlps as [...]")
        return cls(
            heads=tuple(Head(*_integers(pair, "a head", 2)) for pair in _list(data["heads"], "heads")),
            mlps=_integers(data["mlps"], "mlps", None),
            ablation=Ablation.from_json(data),
            neurons=_read_neurons(data.get("neurons", {})),
        )

    def save(self, path: str | Path, record: SearchRecord | None = None) -> None:
        """Write the circuit as one JSON file, with the record of its search if one is given. Raises OSError."""
        data = self.to_json() | (record.to_json() if record is not None else {})
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """The circuit of a circuit file, of a manifest or of a graph file. Raises InputError."""
        from exporter.circuit.circuit_file import load_circuit  # which needs this class

        return load_circuit(path)[0]


_KEYS = {"heads", "mlps", "neurons", *Ablation().to_json()}


def _misfit(component: str, limits: str) -> InputError:
    return InputError(f"circuit names {component}, but {limits}; mend the circuit or choose the model it came from")


def _kind(value: Any) -> str:
    return type(value).__name__


def _take_head(value: Any) -> Head:
    """A head from itself or from a pair (layer, index)."""
    if isinstance(value, Head):
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"a head is Head(layer, index) or a pair (layer, index), not {shorten(value)}")
    return Head(*value)


def _take_layer(value: Any) -> int:
    if isinstance(value, Head):
        raise InputError(f"mlps are layers, and {value} is a head; give it in heads")
    return take_integer("an MLP's layer", value)


def _take_neurons(value: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Hidden units by layer, from a mapping or from its pairs."""
    pairs = value.items() if isinstance(value, Mapping) else take_items("neurons", value)
    taken = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"neurons are a mapping from layers to hidden units, without {shorten(pair)}")
        taken.append((take_integer("a neuron's layer", pair[0]), take_integers("neurons", pair[1])))
    return taken


def _require_once(name: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"{name} has {twice} twice; give each once")


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list, not {_kind(value)}")
    return value


def _integers(value: Any, name: str, length: int | None) -> tuple[int, ...]:
    items = _list(value, name)
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items) or (
        length is not None and len(items) != length
    ):
        wanted = "a list of" if length is None else f"a list of {length}"
        raise InputError(f"{name} must be {wanted} integers from 0, not {json.dumps(value)[:60]}")
    return tuple(items)


def _read_neurons(value: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Neurons from JSON, whose keys (the layers) are strings."""
    if not isinstance(value, Mapping):
        raise InputError(f"neurons must be an object of layers and hidden units, not {_kind(value)}")
    if wrong := [key for key in value if not re.fullmatch(r"[0-9]{1,9}", str(key))]:
        raise InputError(f"neurons has the layer {shorten(wrong[0])}; give layers as whole numbers")
    return tuple((int(key), _integers(units, f"neurons of layer {key}", None)) for key, units in value.items())
