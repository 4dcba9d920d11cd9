"""The fields of a circuit, from Python values and from JSON; each raises InputError with what was got."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from exporter.checks import shorten, take_integer, take_integers, take_items
from exporter.circuit.components import Head
from exporter.errors import InputError


def describe_misfit(component: str, limits: str) -> InputError:
    """The error of a circuit that names what its model lacks."""
    return InputError(f"circuit names {component}, but {limits}; mend the circuit or choose the model it came from")


def name_kind(value: Any) -> str:
    """The name of a value's type."""
    return type(value).__name__


def take_head(value: Any) -> Head:
    """A head from itself or from a pair (layer, index)."""
    if isinstance(value, Head):
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"a head is Head(layer, index) or a pair (layer, index), not {shorten(value)}")
    return Head(*value)


def take_layer(value: Any) -> int:
    """An MLP's layer; raises for a head."""
    if isinstance(value, Head):
        raise InputError(f"mlps are layers, and {value} is a head; give it in heads")
    return take_integer("an MLP's layer", value)


def take_neurons(value: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Hidden units by layer, from a mapping or from its pairs."""
    pairs = value.items() if isinstance(value, Mapping) else take_items("neurons", value)
    taken = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"neurons are a mapping from layers to hidden units, without {shorten(pair)}")
        taken.append((take_integer("a neuron's layer", pair[0]), take_integers("neurons", pair[1])))
    return taken


def require_once(name: str, names: list[str]) -> None:
    """Raise where something is given twice."""
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"{name} has {twice} twice; give each once")


def read_list(value: Any, name: str) -> list[Any]:
    """A list from JSON."""
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list, not {name_kind(value)}")
    return value


def read_integers(value: Any, name: str, length: int | None) -> tuple[int, ...]:
    """Integers from 0, from JSON; `length` of them where it is given."""
    items = read_list(value, name)
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items) or (
        length is not None and len(items) != length
    ):
        wanted = "a list of" if length is None else f"a list of {length}"
        raise InputError(f"{name} must be {wanted} integers from 0, not {json.dumps(value)[:60]}")
    return tuple(items)


def read_neurons(value: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Neurons from JSON, whose keys (the layers) are strings."""
    if not isinstance(value, Mapping):
        raise InputError(f"neurons must be an object of layers and hidden units, not {name_kind(value)}")
    if wrong := [key for key in value if not re.fullmatch(r"[0-9]{1,9}", str(key))]:
        raise InputError(f"neurons has the layer {shorten(wrong[0])}; give layers as whole numbers")
    return tuple((int(key), read_integers(units, f"neurons of layer {key}", None)) for key, units in value.items())
