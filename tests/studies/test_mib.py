"""CPR and CMD against curves that are integrated by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.circuit import Circuit, SearchRecord
from exporter.studies.mib import Areas, compute_areas, compute_faithfulness
from exporter.studies.points import Point
from exporter.studies.summary import compute_areas_by_seed


def test_faithfulness_by_hand() -> None:
    assert compute_faithfulness(0.7, dense=0.9, empty=0.1) == pytest.approx(0.75)
    assert compute_faithfulness(0.5, dense=0.0, empty=2.0) == 0.75  # KL: 0 for the dense model
    assert compute_faithfulness(0.5, dense=0.3, empty=0.3) is None


def test_areas_by_hand() -> None:
    # trapezoids to (0.25, 0.5), (0.5, 1.25) and (1, 1):
    # under: 0.25 * 0.25 + 0.25 * 0.875 + 0.5 * 1.125; from 1: 0.25 * 0.75 + 0.25 * 0.375 + 0.5 * 0.125
    assert compute_areas([0.5, 0.25], [1.25, 0.5]) == Areas(0.84375, 0.34375)
    assert compute_areas([], []) == Areas(0.5, 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6))
def test_below_1_the_two_areas_are_the_whole(points: list[tuple[float, float]]) -> None:
    areas = compute_areas([size for size, _ in points], [value for _, value in points])
    assert areas.cpr + areas.cmd == pytest.approx(1)


def make_point(number: int, seed: int, components: float, accuracy: float) -> Point:
    settings = {"seed": seed, "ablation": "mean", "mlps": "searched", "alpha": 0.1 * number, "budget": None}
    metrics = {"accuracy": accuracy, "same_verdict": 1.0}
    figures = {"components": components, "test": metrics, "dense": {"accuracy": 1.0, "same_verdict": 1.0}}
    figures["empty"] = {"accuracy": 0.2, "same_verdict": 1.0}
    return Point(number, settings, figures, Circuit((), ()), SearchRecord(), "")


def test_areas_are_of_one_seed_each() -> None:
    points = [make_point(1, 0, 0.5, 0.6), make_point(2, 1, 0.5, 1.0)]
    (row,) = compute_areas_by_seed(points)  # what does not tell dense from empty is no measure
    # f is 0.5 and 1 at half the size: areas 0.125 + 0.375 = 0.5, and 0.25 + 0.5 = 0.75
    assert row["metric"] == "accuracy"
    assert (row["cpr"], row["cmd"]) == pytest.approx((0.625, 0.375))
    assert (row["cpr_std"], row["cmd_std"]) == pytest.approx((0.25 / 2**0.5, 0.25 / 2**0.5))
