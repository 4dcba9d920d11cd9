"""Latency of ONNX files against each other, in one process, the way PITFALLS of benchmarking ask for.

Two models take turns in blocks of calls, each after a pause and a warm-up call: call by call, the spinning
threads of the other session would be what is measured. A *round* is a block of each, one right after the
other, and gives one ratio of medians. What is reported is the median of the rounds' ratios with its
bootstrap interval: whatever else the machine does slows both blocks of a round, or the one as often as the
other, so the ratios scatter around the true one where the times themselves do not.

A measurement goes on until its question is answered: until the interval is on one side of a bar, or narrow,
or the time is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.runtime import open_session, run_logits

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]
Place = Literal["above", "across", "below"]
_PAUSE_SECONDS = 0.02  # lets the other session's threads go to sleep
_MOST_CALLS = 20
_LEAST_CALLS = 3
_SETTLED = 0.99  # of the interval that decides: stricter than what is reported, because it is looked at often


@dataclass(frozen=True)
class Latency:
    """Median seconds of one call of `dense` and of `circuit`, and how many times faster the circuit is.

    `speedup` is the median of dense / circuit over rounds, with its 95 % bootstrap interval.
    """

    batch: int
    threads: int
    dense: float
    circuit: float
    speedup: float
    speedup_ci95: tuple[float, float]


@dataclass(frozen=True)
class Effort:
    """How much to measure: at least `rounds` rounds, and then until it is settled or `seconds` are over.

    With a `bar`, it is settled when the 99 % interval of the ratio lies on one side of it; without, when that
    interval reaches less than the share `precision` to either side. A block is calls for `block_seconds`, at
    least 3 and at most 20.
    """

    rounds: int = 7
    seconds: float = 0.0
    bar: float | None = None
    precision: float = 0.01
    block_seconds: float = 0.15


@dataclass(frozen=True)
class Comparison:
    """What was measured: seconds of each block's median call, round by round, for `reference` and `circuit`."""

    reference: tuple[float, ...]
    circuit: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times faster the circuit is: the median over rounds of reference / circuit."""
        return float(np.median(self._ratios))

    @property
    def reference_seconds(self) -> float:
        """The median of the reference's blocks."""
        return float(np.median(self.reference))

    @property
    def circuit_seconds(self) -> float:
        """The median of the circuit's blocks."""
        return float(np.median(self.circuit))

    @property
    def _ratios(self) -> np.ndarray[Any, Any]:
        return np.divide(self.reference, self.circuit)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The bootstrap interval of the ratio, rounds resampled; a point where there is one round or no scatter."""
        from scipy.stats import bootstrap

        ratios = self._ratios
        if np.ptp(ratios) == 0:
            return float(ratios[0]), float(ratios[0])
        found = bootstrap(
            (ratios,),
            np.median,
            confidence_level=level,
            method="percentile",
            n_resamples=2000,
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)

    def place(self, bar: float) -> Place:
        """Where the interval lies: `above` the bar, `below` it, or `across` it."""
        low, high = self.interval(_SETTLED)
        return "above" if low >= bar else "below" if high < bar else "across"

    def is_settled(self, effort: Effort) -> bool:
        """Whether more rounds would change nothing that was asked."""
        if effort.bar is not None:
            return self.place(effort.bar) != "across"
        low, high = self.interval(_SETTLED)
        return max(high - self.ratio, self.ratio - low) <= effort.precision * self.ratio


def compare_calls(
    reference: Call,
    circuit: Call,
    effort: Effort,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Comparison:
    """Time two calls against each other in alternating blocks, as long as `effort` says."""
    start = clock()
    blocks: dict[str, list[float]] = {"reference": [], "circuit": []}
    calls = {"reference": reference, "circuit": circuit}
    while True:
        n_rounds = len(blocks["circuit"])
        if n_rounds >= effort.rounds:
            found = Comparison(tuple(blocks["reference"]), tuple(blocks["circuit"]))
            if clock() - start >= effort.seconds or found.is_settled(effort):
                return found
        for name in sorted(calls, reverse=n_rounds % 2 == 0):  # each is first every other time
            blocks[name].append(_time_block(calls[name], effort.block_seconds, clock, sleep))


def _time_block(call: Call, seconds: float, clock: Callable[[], float], sleep: Callable[[float], object]) -> float:
    """The median of the seconds of each call in one block."""
    sleep(_PAUSE_SECONDS)
    call()
    block: list[float] = []
    while len(block) < _LEAST_CALLS or (len(block) < _MOST_CALLS and sum(block) < seconds):
        start = clock()
        call()
        block.append(clock() - start)
    return float(np.median(block))


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def compare_latency(
    dense: str | Path,
    circuit: str | Path,
    input_ids: torch.Tensor,
    *,
    blocks: int = 7,
    block_seconds: float = 0.15,
    threads: int | None = None,
) -> Latency:
    """Time two ONNX files on the same (batch, pos) prompts, on the CPU, in alternating blocks."""
    threads = threads or count_cores()
    sessions = [open_session(path, threads=threads) for path in (dense, circuit)]
    ids = input_ids.numpy()
    calls: Sequence[Call] = [lambda session=session: run_logits(session, ids) for session in sessions]  # type: ignore[misc]  # typeshed
    found = compare_calls(calls[0], calls[1], Effort(rounds=blocks, block_seconds=block_seconds))
    return Latency(ids.shape[0], threads, found.reference_seconds, found.circuit_seconds, found.ratio, found.interval())
