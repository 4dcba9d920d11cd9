"""What is measured of a file's guards: plain data, which needs no torch to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Refusals:
    """Of n prompts, the share that some guard of the file refuses, with its 95 % Wilson interval.

    auroc: of `scope_distance`, between the held-out prompts of the task and these (1: all of these are farther away);
    None of the held-out ones themselves.
    """

    n: int
    refused: float
    ci95: tuple[float, float]
    auroc: float | None = None


@dataclass(frozen=True)
class GuardFigures:
    """The guard `in_scope` of a file.

    directions: how many the distance is taken in. n_fitted, n_aside: prompts that it was fitted on, and others that set
    its limit. alarms: the share of the task's prompts that the limit allows to be refused, which is more than asked for
    where n_aside is small. test: of held-out prompts, so that what is refused is a false alarm. unseen, others: by name
    of an unseen set, and of what is not of the task.
    """

    statistic: str
    directions: int
    n_fitted: int
    n_aside: int
    alarms: float
    test: Refusals
    unseen: dict[str, Refusals] = field(default_factory=dict)
    others: dict[str, Refusals] = field(default_factory=dict)


def describe_guard(figures: GuardFigures) -> str:
    """The figures as a sentence."""

    def list_refused(sets: Mapping[str, Refusals]) -> str:
        return ", ".join(f"{name} {found.refused:.1%}" for name, found in sets.items())

    low, high = figures.test.ci95
    unseen = f", of its unseen sets {list_refused(figures.unseen)}" if figures.unseen else ""
    return (
        f"its guards refuse {figures.test.refused:.1%} [{low:.1%}, {high:.1%}] of {figures.test.n} held-out prompts of "
        f"the task{unseen}, and of what is not of the task: {list_refused(figures.others)}"
    )
