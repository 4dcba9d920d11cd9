"""What one could have done instead: the contestants of `export-circuit compare`, accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exporter.errors import InputError
from exporter.files import read_text
from exporter.graph.metadata import Plain
from exporter.metrics.statistics import Accuracy
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.chart import Chart
from exporter.outputs.report.words import write_count, write_interval, write_share, write_short, write_time

_OURS = "ours"  # the contestants that are circuits of ours have names that begin so


class Contender(Plain):
    """One point of a comparison, as its file has it. held: numbers that it takes; seconds are milliseconds there."""

    contestant: str
    name: str
    held: int
    test: Accuracy
    latency_ms: float


class Contestant(Plain):
    """What became of one way; note: why it has no more points."""

    note: str | None = None
    points: list[Contender]


class Comparison(Plain):
    """A comparison's file. key: what it was made of; sentences: where a baseline wins."""

    key: dict[str, Any]
    sentences: list[str]
    contestants: dict[str, Contestant]


@dataclass(frozen=True)
class Row:
    """One contender as text, and where it lies in the chart."""

    name: str
    ours: bool
    accuracy: str
    interval: str
    latency: str
    held: str
    x: float
    y: float

    @property
    def text(self) -> str:
        """What is said of its point."""
        return f"{self.name}: {self.accuracy} in {self.latency}"


@dataclass(frozen=True)
class Others:
    """The chart with its points, and the sentences."""

    chart: Chart
    rows: list[Row]
    sentences: list[str]
    alt: str


def comparison_path(manifest: Path) -> Path:
    """Where the comparison of a manifest is looked for: `model.compare.json` beside `model.json`."""
    return manifest.with_suffix(".compare.json")


def load_comparison(path: Path, manifest: Manifest) -> Comparison | None:
    """The comparison of a manifest's task and model, None where there is no file.

    Raises InputError: the file is no comparison, or of something else.
    """
    if not path.exists():
        return None
    try:
        found = Comparison.model_validate_json(read_text(path))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no comparison that export-circuit wrote; move it away ({error!r:.80})") from error
    for name, ours in (("task", manifest.task.name), ("weights", manifest.model.sha256)):
        if found.key.get(name) != ours:
            raise InputError(f"{path} compares on another {name} than the manifest's; move it away, or compare again")
    return found


def draw_others(comparison: Comparison | None) -> Others | None:
    """The contestants; None without any."""
    if comparison is None:
        return None
    points = [point for contestant in comparison.contestants.values() for point in contestant.points]
    if not points:
        return None
    chart = Chart.of(
        [point.latency_ms for point in points],
        [point.test.accuracy for point in points],
        write_x=lambda x: f"{x:g} ms",
        write_y=lambda y: f"{100 * y:.0f} %",
        log_x=True,
        y_to=1.0,
    )
    rows = [_draw(point, chart) for point in sorted(points, key=lambda point: -point.test.accuracy)]
    alt = f"Accuracy and time of {write_count(len(rows), 'contender')}; the table below has the values"
    return Others(chart, rows, _finish(comparison.sentences), alt)


def _draw(point: Contender, chart: Chart) -> Row:
    x, y = chart.place(point.latency_ms, point.test.accuracy)
    return Row(
        name=point.name,
        ours=point.contestant.startswith(_OURS),
        accuracy=write_share(point.test.accuracy),
        interval=write_interval(point.test),
        latency=write_time(point.latency_ms / 1e3),
        held=write_short(point.held),
        x=x,
        y=y,
    )


def _finish(sentences: Sequence[str]) -> list[str]:
    """Sentences with a capital and one full stop."""
    return [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in sentences]
