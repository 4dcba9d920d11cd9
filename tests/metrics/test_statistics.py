"""Each interval and test against a case computed by hand, or published."""

from __future__ import annotations

import pytest
import torch

from exporter.metrics.statistics import (
    Paired,
    bootstrap_difference,
    compute_mcnemar,
    count_prompts,
    describe_pairing,
)


def verdicts(both: int, only_first: int, only_second: int, neither: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two models that are both right so often, only the first, only the second, or neither."""
    pairs = [(1, 1)] * both + [(1, 0)] * only_first + [(0, 1)] * only_second + [(0, 0)] * neither
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    return first, second


def test_mcnemar_by_hand() -> None:
    """9 against 1: 2 * (C(10, 0) + C(10, 1)) / 2^10 = 22 / 1024, whatever the concordant pairs are."""
    for both, neither in ((5, 0), (100, 40)):
        assert compute_mcnemar(*verdicts(both, 9, 1, neither)) == pytest.approx(22 / 1024)
        assert compute_mcnemar(*verdicts(both, 1, 9, neither)) == pytest.approx(22 / 1024)
    assert compute_mcnemar(*verdicts(3, 2, 2)) == 1.0
    assert compute_mcnemar(*verdicts(7, 0, 0)) == 1.0


def test_bootstrap_by_hand() -> None:
    """Two prompts with differences 0 and -1: resampled means are 0, -1/2, -1 with 1/4, 1/2, 1/4."""
    assert bootstrap_difference(*verdicts(1, 1, 0)) == (-1.0, 0.0)
    assert bootstrap_difference(*verdicts(9, 0, 0)) == (0.0, 0.0)
    assert bootstrap_difference(*verdicts(0, 1, 0)) == (-1.0, -1.0)


def test_bootstrap_is_near_the_normal_interval_where_there_are_many_prompts() -> None:
    """60 lost and 20 won of 1000: -.04 +- 1.96 sqrt((.08 - .04^2) / 1000), and the same again each time."""
    given = verdicts(920, 60, 20)
    half = 1.959964 * ((0.08 - 0.04**2) / 1000) ** 0.5
    found = bootstrap_difference(*given)
    assert found == pytest.approx((-0.04 - half, -0.04 + half), abs=0.0015)
    assert bootstrap_difference(*given) == found


def test_prompts_needed_by_hand() -> None:
    """Connor (1987): (1.959964 sqrt(psi) + .841621 sqrt(psi - d^2))^2 / d^2.

    psi = .05, d = .01: (.438261 + .188004)^2 / .0001 = 3922.1. psi = d = .01: (.195996 + .083740)^2 / .0001 = 782.5.
    psi = .4, d = .2: (1.239590 + .505014)^2 / .04 = 76.09.
    """
    assert count_prompts(0.05) == 3923
    assert count_prompts(0.01) == 783
    assert count_prompts(0.0) == 783  # there is no loss of a point without as many prompts that differ
    assert count_prompts(0.4, 0.2) == 77


def test_so_many_prompts_have_that_power() -> None:
    """Drawn anew, a loss of ten points is seen by McNemar's exact test in 80 % of sets, give or take what is drawn."""
    n, generator = count_prompts(0.2, 0.1), torch.Generator().manual_seed(0)
    draws = torch.rand(400, n, generator=generator)
    seen = [
        compute_mcnemar(1.0 * (row > 0.05), 1.0 * ((row < 0.05) | (row > 0.2))) < 0.05 for row in draws
    ]  # only the first is right on .15, only the second on .05
    assert 0.72 < sum(seen) / len(seen) < 0.86


def test_pairs_of_a_circuit_and_the_dense_model() -> None:
    found = Paired.of(*verdicts(88, 9, 1, 2))
    assert found.mcnemar_p == pytest.approx(22 / 1024)
    assert found.difference == pytest.approx(-0.08)
    assert found.ci95[0] < -0.08 < found.ci95[1] < 0
    assert found.prompts_for_one_point == count_prompts(0.1)
    assert found.is_worse
    assert not Paired.of(*verdicts(88, 1, 9, 2)).is_worse  # better
    assert not Paired.of(*verdicts(88, 2, 1)).is_worse  # who knows


def test_what_is_said_of_pairs() -> None:
    worse = describe_pairing("the test set", 100, Paired(22 / 1024, -0.08, (-0.14, -0.02), 7848))
    assert worse == (
        "on the test set the circuit is right less often than the dense model: by 8.0 points [2.0, 14.0] "
        "(McNemar's exact test, p = 0.021)"
    )
    few = describe_pairing("the test set", 500, Paired(1.0, 0.0, (0.0, 0.0), 783))
    assert few == "500 prompts of the test set are too few to tell a loss of one point: that takes some 783"
    assert describe_pairing("the test set", 1000, Paired(1.0, 0.0, (0.0, 0.0), 783)) is None
