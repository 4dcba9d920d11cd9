"""Compare the latency of two ONNX files, in one process.

The two models take turns in blocks of calls. Each block starts with a pause and a warm-up call: in turns of single
calls, the other session's spinning threads would slow the measured one. A *round* is one block of each model, and
gives one ratio of medians. The result is the median of the rounds' ratios with its bootstrap interval. Other load on
the machine slows both blocks of a round, or either of them equally often, so it biases the times, but not the ratio.

A measurement ends when the interval lies on one side of a bar, or is narrow enough, or the time is used up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.checks import require_type, take_integer
from exporter.errors import InputError
from exporter.runtime.session import open_session, run_logits

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]
Place = Literal["above", "across", "below"]
_PAUSE_SECONDS = 0.02  # so that the other session's threads stop spinning
_MOST_CALLS = 20
_LEAST_CALLS = 3
_SETTLED = 0.99  # level of the interval that ends a measurement: above the reported 95 %, since it is tested repeatedly


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
    """How much to measure: at least `rounds` rounds, then until the ratio is settled or `seconds` have passed.

    With a `bar`, the ratio is settled when its 99 % interval lies on one side of the bar; without, when both ends of
    the interval are within the share `precision` of the ratio. A block makes calls for `block_seconds`, at least 3 and
    at most 20.
    """

    rounds: int = 7
    seconds: float = 0.0
    bar: float | None = None
    precision: float = 0.01
    block_seconds: float = 0.15


@dataclass(frozen=True)
class Comparison:
    """The measured times: seconds of the median call of each round's block, for `reference` and `circuit`."""

    reference: tuple[float, ...]
    circuit: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times faster the circuit is: the median over rounds of reference / circuit."""
        return float(np.median(self._ratios))

    @property
    def reference_seconds(self) -> float:
        """Seconds of the reference's call: the median over rounds."""
        return float(np.median(self.reference))

    @property
    def circuit_seconds(self) -> float:
        """Seconds of the circuit's call: the median over rounds."""
        return float(np.median(self.circuit))

    @property
    def _ratios(self) -> np.ndarray[Any, Any]:
        return np.divide(self.reference, self.circuit)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The percentile bootstrap interval of the ratio, over rounds; a single point if all ratios are equal."""
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
        """Where the 99 % interval of the ratio lies: `above` the bar, `below` it, or `across` it."""
        low, high = self.interval(_SETTLED)
        return "above" if low >= bar else "below" if high < bar else "across"

    def is_settled(self, effort: Effort) -> bool:
        """Whether the 99 % interval meets `effort`'s criterion: on one side of the bar, or narrow enough."""
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
    """Time two calls in alternating blocks, as long as `effort` says. `clock` and `sleep` count in seconds."""
    start = clock()
    blocks: dict[str, list[float]] = {"reference": [], "circuit": []}
    calls = {"reference": reference, "circuit": circuit}
    while True:
        n_rounds = len(blocks["circuit"])
        if n_rounds >= effort.rounds:
            found = Comparison(tuple(blocks["reference"]), tuple(blocks["circuit"]))
            if clock() - start >= effort.seconds or found.is_settled(effort):
                return found
        for name in sorted(calls, reverse=n_rounds % 2 == 0):  # alternate which one is first
            blocks[name].append(_time_block(calls[name], effort.block_seconds, clock, sleep))


def _time_block(call: Call, seconds: float, clock: Callable[[], float], sleep: Callable[[float], object]) -> float:
    """Median seconds of a call in one block."""
    sleep(_PAUSE_SECONDS)
    call()
    block: list[float] = []
    while len(block) < _LEAST_CALLS or (len(block) < _MOST_CALLS and sum(block) < seconds):
        start = clock()
        call()
        block.append(clock() - start)
    return float(np.median(block))


def count_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def compare_latency(
    dense: str | Path,
    circuit: str | Path,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    blocks: int = 7,
    block_seconds: float = 0.15,
    threads: int | None = None,
) -> Latency:
    """Time two ONNX files on the same (batch, pos) prompts, on the CPU, in alternating blocks.

    `mask`, (batch, pos) bool, is False at padding on the left; without it, a file with a cut vocabulary may refuse
    padding tokens.
    `threads`: intra-op threads; None for one per core. Raises InputError: an argument has a wrong type, shape or value,
    a file is missing or cannot be loaded, or it refuses the prompts.
    """
    _check_prompts(input_ids, mask)
    take_integer("blocks", blocks, least=1)
    require_type("block_seconds", block_seconds, int, float)
    threads = count_cores() if threads is None else take_integer("threads", threads, least=1, most=2**10)
    for path in (dense, circuit):
        require_type("a path", path, str, Path)
        if not Path(path).is_file():
            raise InputError(f"no file {str(path)!r}; give an ONNX file")
    sessions = [open_session(path, threads=threads) for path in (dense, circuit)]
    ids, real = input_ids.numpy(), None if mask is None else mask.numpy()
    calls: Sequence[Call] = [lambda session=session: run_logits(session, ids, real) for session in sessions]  # type: ignore[misc]  # typeshed
    found = compare_calls(calls[0], calls[1], Effort(rounds=blocks, block_seconds=block_seconds))
    return Latency(ids.shape[0], threads, found.reference_seconds, found.circuit_seconds, found.ratio, found.interval())


def _check_prompts(input_ids: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Raise InputError unless input_ids are (batch, pos) int64, and mask is bool of the same shape or None."""
    import torch

    require_type("input_ids", input_ids, torch.Tensor)
    require_type("mask", mask, torch.Tensor, type(None))
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or 0 in input_ids.shape:
        raise InputError(f"input_ids must be (batch, pos) int64, not {tuple(input_ids.shape)} {input_ids.dtype}")
    if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
        raise InputError(f"mask must be bool and {tuple(input_ids.shape)}, not {tuple(mask.shape)} {mask.dtype}")


def time_call(path: str | Path, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> Latency:
    """Time a single call of a file, to check that it runs; as a Latency of the file against itself, speedup 1."""
    threads = count_cores()
    session = open_session(path, threads=threads)
    start = time.perf_counter()
    run_logits(session, input_ids.numpy(), None if mask is None else mask.numpy())
    seconds = time.perf_counter() - start
    return Latency(len(input_ids), threads, seconds, seconds, 1.0, (1.0, 1.0))
