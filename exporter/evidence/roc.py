"""ROC of a circuit against a known one: does what the search found costly to remove belong to the known circuit?

Components are ranked by score: by how much the KL grew when the greedy search tried to remove them. For each threshold
the curve gives which share of the known circuit is above it (true positives) and which share of the rest is (false
ones). As in Conmy et al. 2023 (arXiv:2304.14997), with the scores of one search, not a search by threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.circuit import Circuit, CircuitFile, Component, load_published, read_circuit_file
from exporter.errors import InputError, MissingRuntimeError


@dataclass(frozen=True)
class Reference:
    """A circuit that is taken for the truth; `judge` gives those of a model's components that it knows something of."""

    name: str
    source: str
    circuit: Circuit
    judge: Callable[[Iterable[Component]], list[Component]]


@dataclass(frozen=True)
class RocPoint:
    """Of the components with at least this score: shares of false and true positives; None is above all scores."""

    threshold: float | None
    fpr: float
    tpr: float


@dataclass(frozen=True)
class Roc:
    """A circuit against a reference.

    n, positives: components that were compared, and how many of them the reference has. unscored: components of the
    reference that have no score, and so are left out. auc: the area under the curve; a random order has 0.5. fpr, tpr,
    precision: of the circuit as it stands; precision is None where it has none of the components.
    """

    circuit: str
    against: str
    source: str
    n: int
    positives: int
    unscored: tuple[str, ...]
    auc: float
    points: tuple[RocPoint, ...]
    fpr: float
    tpr: float
    precision: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields, the points as objects."""
        return asdict(self)


def compare_roc(path: str | Path, against: str) -> Roc:
    """A circuit file, manifest or graph file against a published circuit (by name), or against such a file.

    Raises InputError: a file that cannot be read or has no scores, another model's circuit, or components that are all
    of one kind; MissingRuntimeError: without scikit-learn.
    """
    file, reference = read_circuit_file(path), read_reference(against)
    if not file.scores:
        raise InputError(
            f"{path} has no scores by component: only the greedy search (--preset paper) and graph files with node "
            "scores have; a gradual search removes many at once"
        )
    return rank_components(str(path), file, reference)


def read_reference(name: str) -> Reference:
    """A published circuit by its name, or the circuit of a file. Raises InputError: neither."""
    published = load_published()
    if name in published:
        known = published[name]
        return Reference(name, known.source, known.circuit, known.judge)
    if Path(name).exists():
        return Reference(name, "file", read_circuit_file(name).circuit, list)
    raise InputError(f"unknown circuit {name!r}; choose from {', '.join(published)}, or give a circuit file")


def rank_components(name: str, file: CircuitFile, reference: Reference) -> Roc:
    """The curve of a circuit with scores. Raises InputError and MissingRuntimeError as `compare_roc`."""
    metrics = _import_metrics()
    scored = reference.judge(file.scores)
    truth = [reference.circuit.keeps_any(component) for component in scored]
    if len(set(truth)) < 2:
        which = "all" if any(truth) else "none"
        raise InputError(f"{which} of the {len(scored)} components with a score belong to {reference.name}; no curve")
    values = [file.scores[component] for component in scored]
    fpr, tpr, thresholds = metrics.roc_curve(truth, values)  # corners only
    kept = [file.circuit.keeps_any(component) for component in scored]
    right = sum(a and b for a, b in zip(kept, truth, strict=True))
    return Roc(
        circuit=name,
        against=reference.name,
        source=reference.source,
        n=len(scored),
        positives=sum(truth),
        unscored=tuple(str(c) for c in reference.circuit.components if c not in file.scores),
        auc=float(metrics.roc_auc_score(truth, values)),
        points=tuple(
            RocPoint(float(t) if index else None, float(x), float(y))
            for index, (t, x, y) in enumerate(zip(thresholds, fpr, tpr, strict=True))
        ),
        fpr=(sum(kept) - right) / (len(truth) - sum(truth)),
        tpr=right / sum(truth),
        precision=right / sum(kept) if any(kept) else None,
    )


def plot_roc(roc: Roc, path: Path) -> None:
    """Draw the curve; the suffix, .png or .svg, is the format. Raises MissingRuntimeError: without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingRuntimeError("a plot needs matplotlib; pip install 'export-circuit[compare]'") from error
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot([p.fpr for p in roc.points], [p.tpr for p in roc.points], label=f"AUC {roc.auc:.3f}")
    axes.plot([roc.fpr], [roc.tpr], "o", label="the circuit")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"against {roc.against}", aspect="equal")
    axes.legend(loc="lower right")
    figure.savefig(path)


def _import_metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise MissingRuntimeError("ROC needs scikit-learn; pip install 'export-circuit[compare]'") from error
    return metrics
