"""What sublayers take in a runtime, as measured before a search under a latency budget: plain data of its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exporter.checks import require_number, require_type, take_integer, take_items
from exporter.errors import InputError


@dataclass(frozen=True)
class TimedNetwork:
    """A small network that was timed: by kind of sublayer how many it has, and how many units in all; ms of a call."""

    sublayers: Mapping[str, int]
    units: Mapping[str, int]
    ms: float

    def __post_init__(self) -> None:
        for name in ("sublayers", "units"):
            require_type(f"a timed network's {name}", getattr(self, name), Mapping)
            for kind, count in getattr(self, name).items():
                take_integer(f"a timed network's {name} of {kind}", count)
        require_number("a timed network's ms", self.ms)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a call by what a network has: lines that were fitted to networks with few sublayers.

    rest_ms: of embedding and unembedding. By kind (`attention`, `mlp`): sublayer_ms, of a sublayer however few of its
    units stay; unit_ms, of each unit, a head or a neuron. Raises InputError: a wrong type.
    """

    rest_ms: float
    sublayer_ms: Mapping[str, float]
    unit_ms: Mapping[str, float]
    timed: tuple[TimedNetwork, ...] = ()

    def __post_init__(self) -> None:
        require_number("rest_ms", self.rest_ms)
        for name in ("sublayer_ms", "unit_ms"):
            require_type(name, getattr(self, name), Mapping)
            for kind, value in getattr(self, name).items():
                require_number(f"{name} of {kind}", value)
        object.__setattr__(self, "timed", take_items("timed", self.timed))
        for network in self.timed:
            require_type("each of timed", network, TimedNetwork)

    def to_json(self) -> dict[str, Any]:
        """The table as a record has it."""
        return asdict(self) | {"timed": [asdict(network) for network in self.timed]}

    @classmethod
    def from_json(cls, value: Any) -> LatencyTable:
        """Read what `to_json` wrote; raises InputError."""
        try:
            timed = tuple(TimedNetwork(**network) for network in value["timed"])
            return cls(value["rest_ms"], value["sublayer_ms"], value["unit_ms"], timed)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a latency table needs rest_ms, sublayer_ms, unit_ms and timed, not {value!r:.100}"
            ) from error
