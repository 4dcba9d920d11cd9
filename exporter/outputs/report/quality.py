"""How good the circuit is: accuracy with intervals, in and out of distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exporter.evidence.figures import Evaluation
from exporter.evidence.sentences import is_below
from exporter.metrics.statistics import Accuracy
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.chart import choose_ticks
from exporter.outputs.report.verdict import Discordant
from exporter.outputs.report.words import write_interval, write_p, write_share


@dataclass(frozen=True)
class Mark:
    """An accuracy on a track from 0 to 100: its place, its interval's start and width, and what is said of it."""

    at: float
    start: float
    width: float
    share: str
    interval: str


@dataclass(frozen=True)
class SetRow:
    """One set of prompts."""

    name: str
    n: int
    below: bool
    dense: Mark
    circuit: Mark
    difference: str
    p: str
    kl: str
    agreement: str


@dataclass(frozen=True)
class Quality:
    """The sets, the held-out one first, and the ticks of their common track."""

    rows: list[SetRow]
    ticks: list[tuple[float, str]]


def draw_quality(manifest: Manifest) -> Quality:
    """The accuracy of a manifest's circuit and of its dense model on every set."""
    sets = {"held out": manifest.test, **manifest.ood}
    lowest = min(min(f.dense.ci95[0], f.circuit.ci95[0]) for f in sets.values())
    low = max(0.0, min(0.9, math.floor(lowest * 10) / 10))

    def place(value: float) -> float:
        return round(100 * (value - low) / (1 - low), 2)

    def mark(measured: Accuracy) -> Mark:
        start, end = (place(bound) for bound in measured.ci95)
        share = write_share(measured.accuracy)
        return Mark(place(measured.accuracy), start, round(end - start, 2), share, write_interval(measured))

    rows = [_draw_set(name, figures, mark(figures.dense), mark(figures.circuit)) for name, figures in sets.items()]
    return Quality(rows, [(place(value), f"{100 * value:.0f} %") for value in choose_ticks(low, 1.0, most=6)])


def _draw_set(name: str, figures: Evaluation, dense: Mark, circuit: Mark) -> SetRow:
    apart, points = Discordant.of(figures), 100 * (figures.circuit.accuracy - figures.dense.accuracy)
    return SetRow(
        name=name,
        n=figures.n,
        below=is_below(figures),
        dense=dense,
        circuit=circuit,
        difference="0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−"),
        p="" if apart is None else write_p(apart.p).removeprefix("p = ").removeprefix("p "),
        kl=f"{figures.kl:.3f}",
        agreement=write_share(figures.agreement),
    )
