"""Sentences on sets of prompts and on controls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporter.evidence.controls import (
    Completeness,
    Controls,
    Figures,
    Minimality,
    RandomCircuits,
    Shuffled,
    Stability,
    UnitWorth,
    describe_controls,
)
from exporter.evidence.figures import Evaluation
from exporter.evidence.sentences import describe_sets, describe_unseen, is_below
from exporter.metrics.statistics import Accuracy, Paired


def evaluation(dense: int, circuit: int, n: int = 200, paired: Paired | None = None) -> Evaluation:
    return Evaluation(n, Accuracy.of(dense, n), Accuracy.of(circuit, n), 0.1, 0.9, paired=paired)


def test_an_unseen_set_below_its_interval_is_told_of() -> None:
    """145 of 200 are 72.5 % [65.9, 78.2]: below 95 and 79 %, and not below 78 %."""
    assert describe_unseen("two-nouns", evaluation(190, 145)) == (
        "on two-nouns 22 points below the original (72.5% against 95.0%): put such prompts into the selection set"
    )
    assert is_below(evaluation(158, 145)) and not is_below(evaluation(156, 145))
    assert describe_unseen("x", evaluation(100, 145)) is None
    worse = Paired(0.01, -0.02, (-0.04, 0.0), 900)  # four prompts lost, none gained: seen in pairs alone
    assert is_below(evaluation(149, 145, paired=worse))


def test_sets_are_described_in_one_go() -> None:
    few = Paired(1.0, 0.0, (0.0, 0.0), 783)
    test = evaluation(190, 190, paired=few)
    said = describe_sets(test, {"a": evaluation(190, 190), "b": evaluation(190, 100)})
    assert said == [
        "200 prompts of the held-out set are too few to tell a loss of one point: that takes some 783",
        "on b 45 points below the original (50.0% against 95.0%): put such prompts into the selection set",
    ]
    assert describe_sets(replace(test, paired=None), {}) == []


def figures(n_right: int, kl: float = 0.1) -> Figures:
    return Figures(Accuracy.of(n_right, 100), kl)


GOOD = Controls(
    Shuffled(0.08, refused="no smaller circuit was found"),
    RandomCircuits(400, (figures(10), figures(12))),
    Completeness(figures(20), Accuracy.of(97, 100)),
    Minimality(100, figures(95), tuple(UnitWorth(f"m{i}", 0.1 + 0.004 * i, 0.9) for i in (9, 2, 1, 0))),
    Stability(3, 0, {"a0.h1": 3, "m1": 2}, (0.5, 0.5, 0.2), (0.1, 0.2, 0.3)),
)


def test_good_controls() -> None:
    assert describe_controls(GOOD, Accuracy.of(95, 100)) == [
        "on shuffled answers the same job finds nothing, as it should: no smaller circuit was found",
        "of 2 random circuits of its size, healed for up to 400 steps, the best is right on 12.0%, this one on 95.0%: "
        "its components were well chosen",
        "without the circuit the original is right on 20.0% (97.0% with it): it needs it",
        "3 of its 4 heads and MLPs are worth less than 0.01 nats, each alone; m9, m2, m1 are worth most",
        "in 3 searches on resampled prompts 1 of its 2 heads and MLPs are in every circuit; Jaccard 0.40 of heads, "
        "0.20 of neurons",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shuffled": None}, "shuffled answers say nothing here"),
        ({"shuffled": Shuffled(0.08, None, Accuracy.of(9, 100), 5)}, "ends at 9.0%, chance being 8.0%: as it should"),
        ({"shuffled": Shuffled(0.08, None, Accuracy.of(40, 100), 5)}, "it learns what is not there, so trust it less"),
        (
            {"random": RandomCircuits(0, (figures(94), figures(1)))},
            "right on 94.0%, and 1 as often as this one",
        ),
        ({"completeness": Completeness(figures(96), Accuracy.of(97, 100))}, "it can do the task without it"),
        ({"stability": Stability(3, 1, {"m1": 2}, (1.0, 1.0), (1.0, 0.0))}, "prompts (1 more came to no circuit) 1 of"),
        ({"stability": Stability(3, 3, {"m1": 0}, (), ())}, "none of 3 searches came to a circuit"),
    ],
)
def test_what_controls_can_say_against_a_circuit(changes: dict[str, object], said: str) -> None:
    assert said in " | ".join(describe_controls(replace(GOOD, **changes), Accuracy.of(95, 100)))  # type: ignore[arg-type]
