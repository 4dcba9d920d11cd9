"""Where a gradual search is after each size, in its journal and in files of weights beside it.

A size is one entry: how the size did, the walk, and the circuits of the networks that the next cut may start from,
with the SHA-256 of their weights. Files are written before the entry that names them, and go when no entry needs them
any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exporter.circuit import Circuit, LatencyTable, SizeStep, decision_from_json
from exporter.search.journal import Journal
from exporter.search.state import Packed
from exporter.search.walk import Walk


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a gradual search goes on from after a size.

    path: the sizes so far. base: what the next cut is made from; None for the dense model. best: the smallest network
    that kept the budget, if one did; the same object as `base` where it is the same network. table, goal: of the Meter.
    tutor: the network that teaches the smaller ones, if there is one (`exporter.search.tutor`).
    """

    path: tuple[SizeStep, ...]
    walk: Walk
    base: Packed | None
    best: Packed | None
    table: LatencyTable | None = None
    goal: float = 0.0
    tutor: Packed | None = None


def save_checkpoint(journal: Journal, checkpoint: Checkpoint) -> None:
    """Append the last size to the journal; returns after fsync. Raises InputError, OSError as `WeightFiles.write`."""
    base = _write(journal, checkpoint.base)
    best = base if checkpoint.best is checkpoint.base else _write(journal, checkpoint.best)
    tutor = _write(journal, checkpoint.tutor)
    size, walk = checkpoint.path[-1].to_json(), asdict(checkpoint.walk)
    meter = {"table": None if checkpoint.table is None else checkpoint.table.to_json(), "goal": checkpoint.goal}
    journal.add({"size": size, "walk": walk, "base": base, "best": best, "tutor": tutor, **meter})
    journal.weights.keep({network["sha256"] for network in (base, best, tutor) if network is not None})


def load_checkpoint(journal: Journal) -> Checkpoint | None:
    """Where the search was that the journal is of; None at its beginning. Raises InputError: something is damaged."""
    entries = journal.parse(_Entry.from_json)
    if not entries:
        return None
    last = entries[-1]
    base = _read(journal, last.base)
    best = base if last.best == last.base else _read(journal, last.best)
    path = tuple(entry.size for entry in entries)
    return Checkpoint(path, last.walk, base, best, last.table, last.goal, _read(journal, last.tutor))


def read_prior(journal: Journal, *, gradual: bool) -> dict[str, Any]:
    """What an interrupted search has left, as options of a `Problem`. Raises InputError: something is damaged."""
    return {"checkpoint": load_checkpoint(journal)} if gradual else {"prior": journal.parse(decision_from_json)}


@dataclass(frozen=True)
class _Entry:
    """One entry; a network is its circuit and the SHA-256 of its weights."""

    size: SizeStep
    walk: Walk
    base: tuple[Circuit, str] | None
    best: tuple[Circuit, str] | None
    tutor: tuple[Circuit, str] | None
    table: LatencyTable | None
    goal: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> _Entry:
        """Raises KeyError, TypeError, ValueError, InputError: it is none."""
        base, best, tutor = (
            None if network is None else (Circuit.from_json(network["circuit"]), _take_hash(network["sha256"]))
            for network in (data["base"], data["best"], data.get("tutor"))
        )
        table = None if data["table"] is None else LatencyTable.from_json(data["table"])
        size, walk = SizeStep.from_json(data["size"]), Walk.from_json(data["walk"])
        return cls(size, walk, base, best, tutor, table, float(data["goal"]))


def _take_hash(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError("no SHA-256")
    return value


def _write(journal: Journal, network: Packed | None) -> dict[str, Any] | None:
    if network is None:
        return None
    return {"circuit": network.circuit.to_json(), "sha256": journal.weights.write(network.tensors)}


def _read(journal: Journal, network: tuple[Circuit, str] | None) -> Packed | None:
    return None if network is None else Packed(network[0], journal.weights.read(network[1]))
