"""Contestants take turns in blocks of calls, in one process.

A block is a pause, a warm-up call, and some calls: call by call, the spinning threads of the others' sessions would
be what is measured. The machine's own changes of pace then meet all contestants alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psutil
from scipy.stats import bootstrap

PAUSE = 0.02  # seconds: lets the other sessions' threads go to sleep
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Pace:
    """How long blocks are. A block ends after `seconds` or `most` calls, but not before `least` of them."""

    blocks: int = 7
    seconds: float = 0.15
    least: int = 3
    most: int = 200
    others: float = 0.1
    patience: int = 3

    def slow_down(self, seconds_a_call: float) -> Pace:
        """The same for calls that are so slow that a whole block would be minutes: fewer blocks of fewer calls."""
        return self if seconds_a_call < 0.3 else replace(self, blocks=max(2, self.blocks - 2), least=2)


@dataclass
class Times:
    """Seconds of each call, by block."""

    blocks: list[list[float]] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """Every call."""
        return [seconds for block in self.blocks for seconds in block]

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return float(np.median(self.all))

    def percentiles(self) -> dict[str, float]:
        """Milliseconds, `p50_ms` and so on, and of how many calls: from few calls, p99 is just the slowest."""
        values = np.percentile(self.all, PERCENTILES) * 1e3
        found = {f"p{p}_ms": round(float(value), 4) for p, value in zip(PERCENTILES, values, strict=True)}
        return found | {"calls": len(self.all)}


def time_in_blocks(calls: Mapping[str, Callable[[], Any]], pace: Pace) -> tuple[dict[str, Times], float]:
    """Time some calls against each other. How often is set by a first call of each, which is not counted.

    A round, one block of each, in which other processes took more than `pace.others` of the machine is measured again,
    up to `pace.patience` times as many rounds in all; those with the least of it count. Returns the times and the
    share of the machine that others took in the worst round that counts.
    """
    first = {}
    for name, call in calls.items():
        call()  # sets up what is set up once
        first[name] = _time(call)
    pace = pace.slow_down(max(first.values()))
    rounds: list[tuple[float, dict[str, list[float]]]] = []
    while len(rounds) < pace.patience * pace.blocks:
        others = Others()
        blocks = {name: _time_block(call, pace) for name, call in calls.items()}
        rounds.append((others.share(), blocks))
        if sum(share <= pace.others for share, _ in rounds) == pace.blocks:
            break
    rounds = sorted(rounds, key=lambda each: each[0])[: pace.blocks]
    return {name: Times([blocks[name] for _, blocks in rounds]) for name in calls}, rounds[-1][0]


def compare(a: Times, b: Times) -> tuple[float, float, float]:
    """Median a / median b, and its 95 % interval: the blocks' medians resampled in pairs."""
    ratio = a.median / b.median
    medians = tuple([float(np.median(block)) for block in times.blocks] for times in (a, b))
    if len(medians[0]) < 2 or all(x == y for x, y in zip(*medians, strict=True)):
        return ratio, ratio, ratio

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.median(x, axis=axis) / np.median(y, axis=axis))

    rng = np.random.default_rng(0)
    found = bootstrap(medians, statistic, paired=True, method="percentile", n_resamples=2000, rng=rng)
    return ratio, float(found.confidence_interval.low), float(found.confidence_interval.high)


class Others:
    """What other processes use of the processor from here on."""

    def __init__(self) -> None:
        self.start = self._read()

    def share(self) -> float:
        """Of all cores' time since, the part that was neither idle nor this process's."""
        busy, total = (now - before for now, before in zip(self._read(), self.start, strict=True))
        return round(max(0.0, busy / total), 3) if total else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        times, own = psutil.cpu_times(), os.times()
        total = float(sum(times[:8]))  # user to steal: the guests' time is within user's
        return total - times.idle - getattr(times, "iowait", 0.0) - own.user - own.system, total


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_block(call: Callable[[], Any], pace: Pace) -> list[float]:
    time.sleep(PAUSE)
    call()
    block: list[float] = []
    while len(block) < pace.least or (len(block) < pace.most and sum(block) < pace.seconds):
        block.append(_time(call))
    return block
