"""How the circuit was reached: the sizes that a gradual search passed through, or the KL along a greedy one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.circuit import Decision, SizeStep
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.chart import Chart
from exporter.outputs.report.words import name_metric, write_count, write_share, write_short


@dataclass(frozen=True)
class Dot:
    """A point of a line: where, how it is drawn (`cut`, `healed`, `refused`, `last`), and what is said of it."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Line:
    """A chart with its name, axis titles, a line through some of its dots, and its dots."""

    name: str
    alt: str
    x_title: str
    chart: Chart
    trace: str
    dots: list[Dot]


@dataclass(frozen=True)
class Path:
    """The charts, and the sizes as a table's rows; empty for a greedy search."""

    charts: list[Line]
    sizes: Sequence[SizeStep]
    search: str
    tried: int
    removed: int


def draw_path(manifest: Manifest) -> Path | None:
    """The path of a manifest's search; None for a circuit that was given."""
    record = manifest.get_record()
    removed = sum(decision.removed for decision in record.trace)
    if record.path:
        charts = _draw_sizes(record.path, manifest.size.dense)
        return Path(charts, record.path, record.search, len(record.path), 0)
    if len(record.trace) > 1:
        return Path(
            [_draw_trace(record.trace, *name_metric(record.metric))], (), record.search, len(record.trace), removed
        )
    return None


def _draw_sizes(path: Sequence[SizeStep], dense: int) -> list[Line]:
    path = [replace(step, parameters=max(1, step.parameters)) for step in path]
    kept = [step for step in path if step.kept]
    taken = min(kept, key=lambda step: step.parameters, default=None)
    charts = []
    for name, attribute in (("Accuracy on the selection set", "accuracy"), ("KL from the original, nats", "kl")):
        is_share = attribute == "accuracy"
        cuts = [(step.parameters, float(getattr(step, f"{attribute}_cut"))) for step in path]
        healed = [(step.parameters, float(getattr(step, attribute))) for step in path]
        chart = Chart.of(
            [max(1, dense), *(x for x, _ in healed)],
            [y for _, y in (*cuts, *healed)],
            write_x=write_short,
            write_y=(lambda y: f"{100 * y:.0f} %") if is_share else (lambda y: f"{y:.2g}"),
            log_x=True,
            y_from=None if is_share else 0.0,
            y_to=1.0 if is_share else None,
            flip=True,
        )
        dots = []
        for step, cut, now in zip(path, cuts, healed, strict=True):
            shown = [write_share(y) if is_share else f"{y:.3g} nats" for _, y in (cut, now)]
            said = f"{write_short(step.parameters)} parameters: {shown[0]} after the cut, {shown[1]} after healing"
            kind = "last" if step is taken else "healed" if step.kept else "refused"
            said += "" if step.kept else "; refused"
            dots += [Dot(*chart.place(*cut), "cut", said), Dot(*chart.place(*now), kind, said)]
        line = chart.trace([point for point, step in zip(healed, path, strict=True) if step.kept])
        alt = f"{name} by number of parameters, after each cut and after healing; the table below has the values"
        charts.append(Line(name, alt, "parameters, fewer to the right", chart, line, dots))
    return charts


def _draw_trace(trace: Sequence[Decision], metric: str, unit: str) -> Line:
    after = [step.kl_without if step.removed else step.kl_before for step in trace]
    points = list(enumerate(after, start=1))
    chart = Chart.of(
        [0, *(x for x, _ in points)],
        after,
        write_x=lambda x: f"{x:,.0f}",
        write_y=lambda y: f"{y:.2g}",
        y_from=0.0,
    )
    dots = [
        Dot(
            *chart.place(x, y),
            "last",
            f"{step.component}: kept, for without it {metric} would be {step.kl_without:.3g} {unit}",
        )
        for (x, y), step in zip(points, trace, strict=True)
        if not step.removed
    ]
    removed = sum(step.removed for step in trace)
    alt = (
        f"{metric} against the original over {write_count(len(trace), 'candidate')}, {removed:,} of them removed: "
        f"it ends at {after[-1]:.3g} {unit}"
    )
    return Line(f"{metric} against the original, {unit}", alt, "candidates tried", chart, chart.trace(points), dots)
