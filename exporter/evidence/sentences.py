"""Where a circuit falls short of the dense model, set by set, in plain sentences: for screen, card and reports."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.evidence.figures import Evaluation
from exporter.metrics.statistics import describe_pairing


def is_below(figures: Evaluation) -> bool:
    """Whether the circuit lies more than its 95 % interval below the dense model, or is worse by McNemar's test."""
    is_worse = figures.paired is not None and figures.paired.is_worse
    return is_worse or figures.dense.accuracy > figures.circuit.ci95[1]


def describe_unseen(name: str, figures: Evaluation) -> str | None:
    """A sentence where the circuit falls short on an unseen set; None where it keeps up."""
    if not is_below(figures):
        return None
    dense, circuit = figures.dense.accuracy, figures.circuit.accuracy
    return (
        f"on {name} {100 * (dense - circuit):.0f} points below the original ({circuit:.1%} against {dense:.1%}): put "
        "such prompts into the selection set"
    )


def describe_sets(test: Evaluation, unseen: Mapping[str, Evaluation]) -> list[str]:
    """What to know of the figures: of the held-out set where it is worse or too small to tell, and of unseen sets."""
    held_out = None if test.paired is None else describe_pairing("the held-out set", test.n, test.paired)
    return [text for text in (held_out, *(describe_unseen(*item) for item in unseen.items())) if text is not None]
