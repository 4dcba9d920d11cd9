"""Circuits that others found by hand and published, to hold a found one against: facts, each with its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exporter.checks import take_integer
from exporter.circuit.circuit import Circuit
from exporter.circuit.components import MLP, Component, Head, parse_component
from exporter.errors import InputError
from exporter.files import read_json

_FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class PublishedCircuit:
    """A circuit as its authors give it.

    model: which it is of, with its sizes. roles: heads by what they do. mlps: layers; None where the authors did not
    ask which MLPs matter, so that nothing is known of them. Raises InputError: a head twice, or one that the model
    lacks.
    """

    name: str
    model: str
    n_layers: int
    n_heads: int
    source: str
    roles: Mapping[str, tuple[Head, ...]]
    mlps: tuple[int, ...] | None

    def __post_init__(self) -> None:
        heads = tuple(head for heads in self.roles.values() for head in heads)
        circuit = Circuit(heads=heads, mlps=self.mlps or ())  # checks that each is given once
        circuit.check_fits(n_layers=self.n_layers, n_heads=self.n_heads, d_mlp=0)

    @property
    def circuit(self) -> Circuit:
        """Its components; without MLPs where nothing is known of them."""
        return Circuit(heads=tuple(head for heads in self.roles.values() for head in heads), mlps=self.mlps or ())

    def judge(self, components: Iterable[Component]) -> list[Component]:
        """Those of a model's components of which it says that they belong or do not.

        Raises InputError: the components are those of a model with other sizes.
        """
        components = list(components)
        layers = max((c.layer + 1 for c in components), default=0)
        heads = max((c.index + 1 for c in components if isinstance(c, Head)), default=0)
        if (layers, heads) != (self.n_layers, self.n_heads):
            raise InputError(
                f"{self.name} is a circuit of {self.model}, {self.n_layers} layers of {self.n_heads} heads, and this "
                f"one is of a model with {layers} of {heads}; give a circuit of {self.model}"
            )
        kinds = Head if self.mlps is None else Head | MLP
        return [c for c in components if isinstance(c, kinds)]


@cache
def load_published() -> Mapping[str, PublishedCircuit]:
    """All of them by name. Raises InputError: the data file was edited into what is no circuit."""
    return MappingProxyType({name: read_published(name, entry) for name, entry in read_json(_FILE).items()})


def read_published(name: str, data: Any) -> PublishedCircuit:
    """One entry of the data file. Raises InputError."""
    try:
        roles = {role: tuple(map(_take_head, heads)) for role, heads in data["heads"].items()}
        mlps = None if data["mlps"] is None else tuple(take_integer("an MLP's layer", layer) for layer in data["mlps"])
        sizes = (take_integer("n_layers", data["n_layers"]), take_integer("n_heads", data["n_heads"]))
        return PublishedCircuit(name, data["model"], *sizes, data["source"], roles, mlps)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the published circuit {name!r} lacks a field, or has a wrong one ({error})") from error


def _take_head(text: str) -> Head:
    if not isinstance(component := parse_component(text), Head):
        raise InputError(f"{text} is no head; write one as 'a9.h6'")
    return component
