"""Sites: the places in the network whose units a circuit keeps or removes.

A site belongs to one sublayer. For each of its units it says which component of a circuit the unit is, its activation,
what it adds to the residual, and how the residual changes when its activation is replaced; for the sublayer, which bias
belongs to no unit, and the sublayer that is left with some units. Search, slicing, the cost model and the tables of
replacements use this interface only, whatever the kind of site.

| site | units | a unit's activation | what unit u adds |
|---|---|---|---|
| heads.L | the query heads of layer L | z_u (see `Attention.z`), (d_head,) | z_u @ W_O[u] |
| mlp.L | the MLP of layer L as a whole | its output, (d_model,) | the same, bias included |
| neurons.L | the hidden units of that MLP | a_u, a number (see `FeedForward.hidden`) | a_u * W_out[u] |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor

from exporter.circuit import Circuit, Component
from exporter.network.positions import Positions

SiteKind = Literal["heads", "mlp", "neurons"]


def site_name(kind: SiteKind, layer: int) -> str:
    """The name of a site, `heads.3`: the key of its table of replacements."""
    return f"{kind}.{layer}"


class Site(ABC):
    """One site of a sublayer. `units` are indices in the dense model, in the order of the activations' unit axis."""

    kind: SiteKind

    def __init__(self, layer: int, units: tuple[int, ...]) -> None:
        self.layer = layer
        self.units = units

    @property
    def name(self) -> str:
        """The key of the site's table of replacements."""
        return site_name(self.kind, self.layer)

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """The sublayer's output bias where it belongs to no unit: (d_model,), or None."""

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """The shape of the units' activations at one position: of a row of the table of replacements."""

    @abstractmethod
    def component(self, unit: int) -> Component:
        """The component of a circuit that a unit is."""

    @abstractmethod
    def kept(self, circuit: Circuit) -> tuple[int, ...]:
        """The units that the circuit keeps, ascending."""

    @abstractmethod
    def read(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """The units' activations for the residual x (batch, pos, d_model): (batch, pos, ...), as in the site's table.

        With `n_last`, at the last n_last positions only; `opening` as in `Attention.z`.
        """

    @abstractmethod
    def project(self, activations: Tensor) -> Tensor:
        """What the sublayer adds to the residual, bias included, for given activations: (batch, pos, d_model)."""

    @abstractmethod
    def change(self, unit: int, activations: Tensor, table: Tensor, at: Positions) -> Tensor:
        """The change of the residual when a unit's activation is replaced by the table's: (batch, pos, d_model).

        activations: as `read` returns them, at the positions `at`. table: (pos or 1, ...), on the same device.
        """

    @abstractmethod
    def contribution(self, units: tuple[int, ...], table: Tensor) -> Tensor:
        """What some units add when their activations are the table's, (pos or 1, ...): (pos or 1, d_model) float64."""

    @abstractmethod
    def keep(self, units: tuple[int, ...]) -> Any:
        """The sublayer with only some of its units, at least one."""
