"""A sweep's curves, as in the paper: alpha against size, and size against accuracy, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.errors import MissingRuntimeError
from exporter.studies.points import Point
from exporter.studies.summary import Row, average_points

# Paul Tol's bright scheme, which colour-blind readers tell apart; dashes say it a second time
_COLOURS = {"mean": "#4477AA", "zero": "#EE6677"}
_DASHES = {"searched": "-", "kept": "--"}
_MARKERS = {"searched": "o", "kept": "s"}


def require_matplotlib() -> None:
    """Raise MissingRuntimeError without matplotlib: said before an hour of searching, not after it."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingRuntimeError(
            "the curves need matplotlib, which is not installed; pip install 'export-circuit[compare]'"
        ) from None
    del mpl


def draw_curves(points: Sequence[Point], title: str, files: Sequence[Path]) -> None:
    """Draw the curves into files, the format being the suffix's (.svg, .png); the same points give the same bytes.

    Of alphas two panels, alpha (logarithmic) against size and size against test accuracy; of budgets the second alone.
    Error bars are one standard deviation over seeds, to either side.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = average_points(points)
    panels = 2 if rows[0].alpha is not None else 1
    # text stays text, and the ids in an SVG are the same whenever it is drawn
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "export-circuit", "font.size": 10}):
        figure = Figure(figsize=(5.2 * panels, 4.2), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for ablation, mlps in dict.fromkeys((row.ablation, row.mlps) for row in rows):
            own = [row for row in rows if (row.ablation, row.mlps) == (ablation, mlps)]
            style = {"color": _COLOURS[ablation], "ls": _DASHES[mlps], "marker": _MARKERS[mlps], "ms": 4, "capsize": 2}
            style["label"] = f"{ablation} ablation, MLPs {mlps}"
            if panels == 2:
                axes[0].errorbar([row.alpha for row in own], *_percent(own, "size"), **style)
            own.sort(key=lambda row: row.size.mean)
            (sizes, spread), (accuracies, up) = _percent(own, "size"), _percent(own, "accuracy")
            axes[-1].errorbar(sizes, accuracies, yerr=up, xerr=spread, elinewidth=0.6, **style)
        if panels == 2:
            axes[0].set(xscale="log", xlabel="alpha (nats)", ylabel="size (% of dense parameters)")
        axes[-1].set(xlabel="size (% of dense parameters)", ylabel="accuracy on the test set (%)")
        for axis in axes:
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        figure.suptitle(title, fontsize=10)
        for file in files:
            figure.savefig(file, **({"metadata": {"Date": None}} if file.suffix == ".svg" else {"dpi": 120}))


def _percent(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Means and deviations of one figure, in percent."""
    values = [getattr(row, name) for row in rows]
    return [100 * value.mean for value in values], [100 * value.std for value in values]
