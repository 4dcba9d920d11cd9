"""The plot of a comparison: accuracy against what a system holds, and against the time of a call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.studies.compare_record import Comparison
from exporter.studies.contestants import CONTESTANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's bright and muted schemes, which colour-blind readers tell apart
COLOURS = (
    "#333333", "#004488", "#77AADD", "#EE7733", "#CC3311", "#009988", "#AA3377",
    "#999933", "#DDAA77", "#BBBBBB", "#225522", "#44BB99",
)  # fmt: skip
MARKERS = "*oopsDvX^<>d"
_INCHES = (11.0, 5.0)


def draw(comparison: Comparison, out: Path) -> None:
    """Write the plot as .svg and .png beside the file `out`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # text stays text, and the ids in an SVG are the same whenever it is drawn
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "export-circuit", "font.size": 9}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        by_size, by_time = figure.subplots(1, 2, sharey=True)
        _scatter(by_size, comparison, "held", "numbers held, embeddings included")
        _scatter(by_time, comparison, "latency_ms", "milliseconds of a call, batch 1")
        by_size.set_ylabel("accuracy on the test set, %")
        figure.suptitle(f"{comparison.key['task']}, {comparison.key['model']}")
        if comparison.points:
            figure.legend(*by_size.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(out.with_suffix(".png"), dpi=120)


def _scatter(axes: Axes, comparison: Comparison, quantity: str, label: str) -> None:
    """One colour and marker for each contestant; bars are 95 % Wilson intervals."""
    names = list(CONTESTANTS)
    for name, result in comparison.results.items():
        if not result.points:
            continue
        place = names.index(name) if name in names else len(names)
        x = [getattr(point, quantity) for point in result.points]
        accuracy = [point.test for point in result.points]
        y = [100 * a.accuracy for a in accuracy]
        low = [100 * max(0.0, a.accuracy - a.ci95[0]) for a in accuracy]
        high = [100 * max(0.0, a.ci95[1] - a.accuracy) for a in accuracy]
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.errorbar(x, y, [low, high], fmt=marker, color=colour, label=name, elinewidth=0.6, alpha=0.85)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
