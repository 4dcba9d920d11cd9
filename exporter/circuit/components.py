"""The components of a model that a circuit keeps or removes: attention heads, MLPs, and hidden units of MLPs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.checks import take_integer
from exporter.errors import InputError


@dataclass(frozen=True, order=True)
class Head:
    """One attention (query) head, written `a9.h6` (layer 9, head 6, both from 0).

    Raises InputError: no whole numbers from 0.
    """

    layer: int
    index: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", take_integer("a head's layer", self.layer))
        object.__setattr__(self, "index", take_integer("a head's index", self.index))

    def __str__(self) -> str:
        return f"a{self.layer}.h{self.index}"


@dataclass(frozen=True, order=True)
class MLP:
    """The MLP of one layer as a whole, written `m9`. Raises InputError: no whole number from 0."""

    layer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", take_integer("an MLP's layer", self.layer))

    def __str__(self) -> str:
        return f"m{self.layer}"


@dataclass(frozen=True, order=True)
class Neuron:
    """One hidden unit of an MLP, written `m9.n6`, both indices from 0.

    Its activation is taken after the nonlinearity; in a gated MLP, after the product with the gate. Raises InputError:
    no whole numbers from 0.
    """

    layer: int
    index: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", take_integer("a neuron's layer", self.layer))
        object.__setattr__(self, "index", take_integer("a neuron's index", self.index))

    def __str__(self) -> str:
        return f"m{self.layer}.n{self.index}"


Component = Head | MLP | Neuron


def parse_component(text: str) -> Component:
    """Read `a9.h6`, `m9` or `m9.n6`. Raises InputError for any other text."""
    if match := re.fullmatch(r"a(\d+)\.h(\d+)", text):
        return Head(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"m(\d+)", text):
        return MLP(int(match[1]))
    if match := re.fullmatch(r"m(\d+)\.n(\d+)", text):
        return Neuron(int(match[1]), int(match[2]))
    raise InputError(f"unknown component {text!r}; write a head as 'a9.h6', an MLP as 'm9' and a neuron as 'm9.n6'")
