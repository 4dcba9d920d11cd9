"""What a latency measurement is asked for: how to measure, and which bars to hold it against."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from exporter.errors import UsageError

Gate = Literal["all", "time", "proxies"]
Provider = Literal["cpu", "cuda"]
MOST_PROMPTS, MOST_TOKENS, MOST_THREADS = 2**16, 2**20, 2**10  # beyond, a machine hangs before it refuses
DEFAULT_REGRESSION = 0.10  # where there is a baseline


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and what to hold it against.

    batches: default, the baseline's, else 1 and 32. length: tokens of random prompts. threads: default, the
    baseline's where the machine has as many, else one for each core. min_speedup: how many times faster than the
    reference the circuit must be. max_regression: how much slower, as a share, it may be than in the baseline, or
    without one than the reference itself. gate: `time` or `proxies` alone, or both; with `proxies` nothing is
    timed, and no reference is needed. seconds: the most for one batch. Raises UsageError for what does not fit.
    """

    batches: tuple[int, ...] = ()
    length: int | None = None
    threads: int | None = None
    provider: Provider = "cpu"
    min_speedup: float | None = None
    max_regression: float | None = None
    gate: Gate = "all"
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise UsageError(f"gate is {self.gate!r}; choose from {', '.join(get_args(Gate))}")
        if self.provider not in get_args(Provider):
            raise UsageError(f"provider is {self.provider!r}; choose from {', '.join(get_args(Provider))}")
        counts = [("length", self.length, MOST_TOKENS), ("threads", self.threads, MOST_THREADS)]
        for name, value, most in (*counts, *(("batch", batch, MOST_PROMPTS) for batch in self.batches)):
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}; it must be from 1 to {most:,}")
        if self.min_speedup is not None and not 0 < self.min_speedup < math.inf:
            raise UsageError(f"min_speedup is {self.min_speedup}; it must be a number above 0")
        if self.max_regression is not None and not 0 <= self.max_regression < math.inf:
            raise UsageError(f"max_regression is {self.max_regression}; it must be a share such as 0.1")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"seconds is {self.seconds}; it must be a number above 0")

    @property
    def allowed(self) -> float:
        """How much slower, or larger, than a baseline: a share."""
        return DEFAULT_REGRESSION if self.max_regression is None else self.max_regression


def parse_share(text: str) -> float:
    """A share from `10%` or `0.1`; raises UsageError, also for `10`, which might mean either."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = None if match is None else float(match[1]) / (100 if match[2] else 1)
    if match is None or value is None or (not match[2] and value >= 1):
        raise UsageError(f"{text!r} is no share; write it like 10% or 0.1")
    return value
