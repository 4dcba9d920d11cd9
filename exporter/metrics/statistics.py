"""Shares and means of values per prompt, with confidence intervals for shares."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """A share, 0 to 1, of right top-1 answers, with its 95 % Wilson interval."""

    accuracy: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, n_right: int, n: int) -> Accuracy:
        """From n_right right answers out of n; the interval is the score interval of Wilson (1927)."""
        interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
        return cls(n_right / n, (float(interval.low), float(interval.high)))

    @classmethod
    def of_values(cls, values: Tensor) -> Accuracy:
        """From a value for each prompt, 0 or 1: (prompt,)."""
        return cls.of(int(values.sum()), len(values))


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """The mean of values per prompt, each with its weight: (prompt,) twice."""
    return float((values * weights).sum() / weights.sum())
