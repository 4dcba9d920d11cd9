"""Shares and means of values per prompt: intervals, and tests of two models on the same prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a report reads figures, and computes none: without either it is made in a second
    from torch import Tensor

LEVEL, POWER, LOSS = 0.05, 0.8, 0.01
"""Of all tests here: the two-sided level, the power, and the loss of accuracy that is to be seen (a point)."""
_RESAMPLES = 9999


@dataclass(frozen=True)
class Accuracy:
    """A share, 0 to 1, of right top-1 answers, with its 95 % Wilson interval."""

    accuracy: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, n_right: int, n: int) -> Accuracy:
        """From n_right right answers out of n; the interval is the score interval of Wilson (1927)."""
        from scipy.stats import binomtest

        interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
        return cls(n_right / n, (float(interval.low), float(interval.high)))

    @classmethod
    def of_values(cls, values: Tensor) -> Accuracy:
        """From a value for each prompt, 0 or 1: (prompt,)."""
        return cls.of(int(values.sum()), len(values))


@dataclass(frozen=True)
class Paired:
    """A circuit against the dense model on the same prompts, by whether each is right.

    mcnemar_p: two-sided, `compute_mcnemar`. difference: the circuit's accuracy less the dense model's. ci95: of the
    difference, `bootstrap_difference`. prompts_for_one_point: `count_prompts`.
    """

    mcnemar_p: float
    difference: float
    ci95: tuple[float, float]
    prompts_for_one_point: int

    @classmethod
    def of(cls, dense: Tensor, circuit: Tensor) -> Paired:
        """From 1 where a model is right and 0 where it is wrong: (prompt,) both."""
        discordant = float((dense != circuit).double().mean())
        return cls(
            mcnemar_p=compute_mcnemar(dense, circuit),
            difference=float((circuit - dense).double().mean()),
            ci95=bootstrap_difference(dense, circuit),
            prompts_for_one_point=count_prompts(discordant),
        )

    @property
    def is_worse(self) -> bool:
        """Whether the circuit is right significantly less often."""
        return self.difference < 0 and self.mcnemar_p < LEVEL


def compute_mcnemar(first: Tensor, second: Tensor) -> float:
    """The two-sided p of McNemar's exact test that two models are right equally often: (prompt,) both, 0 or 1.

    Of the prompts on which just one of them is right, each is as likely to be right on any: a binomial test with 1/2
    (McNemar, Psychometrika 12, 1947). 1 where they never differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def bootstrap_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The 95 % interval of mean(second) - mean(first) over prompts, drawn again in pairs: (prompt,) both.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), by a fixed seed.
    Where no pair differs, or there is one prompt, it is a point, which says little: see `count_prompts`.
    """
    from scipy.stats import bootstrap

    differences = (second.double() - first.double()).numpy()
    if (differences == differences[0]).all():
        return float(differences[0]), float(differences[0])
    found = bootstrap(
        (differences,), lambda x, axis: x.mean(axis=axis), n_resamples=_RESAMPLES, batch=500, method="percentile", rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def count_prompts(discordant: float, loss: float = LOSS) -> int:
    """How many prompts McNemar's test needs to see a loss of accuracy: with a power of 80 %, two-sided at 5 %.

    n = (z_(1 - level / 2) sqrt(psi) + z_power sqrt(psi - loss^2))^2 / loss^2, with psi the share of prompts on which
    just one model is right (Connor, Biometrics 43, 1987). psi is the observed share `discordant`, but at least
    `loss`: so many prompts differ wherever there is such a loss.
    """
    from scipy.stats import norm

    psi = max(discordant, loss)
    root = norm.ppf(1 - LEVEL / 2) * math.sqrt(psi) + norm.ppf(POWER) * math.sqrt(psi - loss**2)
    return math.ceil(float(root) ** 2 / loss**2)


def describe_pairing(name: str, n: int, paired: Paired) -> str | None:
    """A sentence where the circuit is significantly worse on the n prompts of a set, or where a loss may be unseen."""
    if paired.is_worse:
        low, high = (-100 * end for end in reversed(paired.ci95))
        return (
            f"on {name} the circuit is right less often than the dense model: by {-100 * paired.difference:.1f} points "
            f"[{low:.1f}, {high:.1f}] (McNemar's exact test, p = {paired.mcnemar_p:.2g})"
        )
    if n < paired.prompts_for_one_point:
        needed = paired.prompts_for_one_point
        return f"{n:,} prompts of {name} are too few to tell a loss of one point: that takes some {needed:,}"
    return None


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """The mean of values per prompt, each with its weight: (prompt,) twice."""
    return float((values * weights).sum() / weights.sum())
