"""What the points of a sweep show together: means over seeds, CPR and CMD, a CSV table."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.studies.mib import compute_areas, compute_faithfulness
from exporter.studies.points import Point

COLUMNS: dict[str, Callable[[Point], Any]] = {
    "point": lambda p: p.number,
    "seed": lambda p: p.settings["seed"],
    "ablation": lambda p: p.settings["ablation"],
    "mlps": lambda p: p.settings["mlps"],
    "alpha": lambda p: p.settings["alpha"],
    "budget": lambda p: name_budget(p),
    "heads": lambda p: len(p.circuit.heads),
    "mlps_kept": lambda p: len(p.circuit.mlps),
    "neurons": lambda p: p.circuit.n_neurons,
    "parameters": lambda p: p.figures["parameters"],
    "size": lambda p: p.figures["size"],
    "components": lambda p: p.figures["components"],
    "selection_kl": lambda p: p.figures["kl"],
    "selection_accuracy": lambda p: p.figures["selection_accuracy"],
    "test_accuracy": lambda p: p.figures["test"]["accuracy"],
    "test_kl": lambda p: p.figures["test"]["kl"],
    "test_agreement": lambda p: p.figures["test"]["agreement"],
    "dense_accuracy": lambda p: p.figures["dense"]["accuracy"],
    "empty_accuracy": lambda p: p.figures["empty"]["accuracy"],
    "empty_kl": lambda p: p.figures["empty"]["kl"],
}
"""The columns of the CSV; sizes and accuracies are shares, KLs are in nats."""


@dataclass(frozen=True)
class Spread:
    """The mean over seeds and the standard deviation of a sample, 0 for one seed."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From one value for each seed."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Row:
    """The points of one alpha or budget, ablation and treatment of MLPs, over all seeds."""

    ablation: str
    mlps: str
    alpha: float | None
    budget: str
    heads: Spread
    mlps_kept: Spread
    size: Spread
    accuracy: Spread
    kl: Spread


def name_budget(point: Point) -> str:
    """A budget as text, `max_params=5%`; empty for a threshold."""
    return " ".join(f"{name}={value}" for name, value in (point.settings["budget"] or {}).items())


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """The points by ablation, MLPs, and alpha or budget, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        rule = (point.settings["alpha"], name_budget(point))
        groups.setdefault((point.settings["ablation"], point.settings["mlps"], *rule), []).append(point)
    return list(groups.values())


def average_points(points: Sequence[Point]) -> list[Row]:
    """One row for each group of points that differ by their seeds alone; accuracy and KL are of the test set."""
    return [
        Row(
            ablation=group[0].settings["ablation"],
            mlps=group[0].settings["mlps"],
            alpha=group[0].settings["alpha"],
            budget=name_budget(group[0]),
            heads=Spread.of([len(p.circuit.heads) for p in group]),
            mlps_kept=Spread.of([len(p.circuit.mlps) for p in group]),
            size=Spread.of([p.figures["size"] for p in group]),
            accuracy=Spread.of([p.figures["test"]["accuracy"] for p in group]),
            kl=Spread.of([p.figures["test"]["kl"] for p in group]),
        )
        for group in group_points(points)
    ]


def compute_areas_by_seed(points: Sequence[Point]) -> list[dict[str, Any]]:
    """CPR and CMD (`exporter.studies.mib`) of each ablation and treatment of MLPs, by metric: mean and deviation.

    Every metric that tells the dense model from the empty circuit is a measure m; a curve is that of one seed.
    """
    areas = []
    kinds = dict.fromkeys((p.settings["ablation"], p.settings["mlps"]) for p in points)
    for ablation, mlps in kinds:
        own = [p for p in points if (p.settings["ablation"], p.settings["mlps"]) == (ablation, mlps)]
        curves = [
            [p for p in own if p.settings["seed"] == seed] for seed in dict.fromkeys(p.settings["seed"] for p in own)
        ]
        for metric in own[0].figures["test"]:
            found = [_compute_curve(curve, metric) for curve in curves]
            if all(found):
                cpr, cmd = (Spread.of([getattr(area, name) for area in found]) for name in ("cpr", "cmd"))
                row = {"ablation": ablation, "mlps": mlps, "metric": metric}
                areas.append(row | {"cpr": cpr.mean, "cpr_std": cpr.std, "cmd": cmd.mean, "cmd_std": cmd.std})
    return areas


def _compute_curve(curve: Sequence[Point], metric: str) -> Any:
    """The areas of one seed's points; None where the metric is the same for dense and empty."""
    values = [
        compute_faithfulness(
            p.figures["test"][metric], dense=p.figures["dense"][metric], empty=p.figures["empty"][metric]
        )
        for p in curve
    ]
    known = [value for value in values if value is not None]
    return compute_areas([p.figures["components"] for p in curve], known) if len(known) == len(curve) else None


def write_csv(points: Sequence[Point]) -> str:
    """One line for each point, under the names of `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([column(point) for column in COLUMNS.values()] for point in points)
    return text.getvalue()
