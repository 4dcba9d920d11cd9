"""The bars: what the reference circuit must reach, held against what was measured.

Each is reported with its value, passed or not; none is loosened here. Where there are two ways to measure, the
stricter counts: the faster of two dense int8 models, the larger peak of two batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from inference.matrix import REFERENCE
from inference.records import Record, Results, find, select

MEGABYTE = 1e6


@dataclass(frozen=True)
class Bar:
    """One demand: `value` has to be at least or at most `limit`; None was not measured."""

    name: str
    limit: float
    sense: Literal["at least", "at most"]
    value: float | None
    unit: str

    @property
    def passed(self) -> bool | None:
        """Whether it is met; None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit


def check_bars(results: Results) -> list[Bar]:
    """Every bar, in the order of the demands."""
    return [*_speed_bars(results), *_machine_bars(results), *_size_bars(results), *_memory_bars(results)]


def _speed_bars(results: Results) -> Iterator[Bar]:
    ratios: list[tuple[str, tuple[str, ...], str, dict[int, float]]] = [
        ("fp32, last position and answers, against dense", ("dense",), "answers", {1: 14, 32: 18}),
        ("int8 against dense", ("dense",), "int8", {1: 60, 32: 60}),
        ("int8 against dense int8", ("dense-int8", "dense-int8-ort"), "int8", {1: 30, 32: 30}),
        ("fp32 against PyTorch eager", ("eager",), "answers", {1: 50}),
    ]
    for name, slow, fast, limits in ratios:
        for batch, limit in limits.items():
            median = _medians(results, batch)
            slowest = [median[contestant] for contestant in slow if contestant in median]
            value = min(slowest) / median[fast] if slowest and fast in median else None
            yield Bar(f"{name}, batch {batch}", limit, "at least", value, "x")


def _medians(results: Results, batch: int) -> dict[str, float]:
    """Milliseconds by contestant, all threads, of the reference circuit."""
    threads = max((r["threads"] for r in select(results["latency"], case=REFERENCE, provider="cpu")), default=0)
    found = select(results["latency"], case=REFERENCE, provider="cpu", threads=threads, batch=batch)
    return {r["contestant"]: r["p50_ms"] for r in found}


def _machine_bars(results: Results) -> Iterator[Bar]:
    yield Bar("nodes in fp32", 45, "at most", _read(results, "answers", lambda r: r["nodes"]), "")
    found = select(results["latency"], case=REFERENCE, provider="cpu", batch=32, contestant="answers")
    record = max(found, key=lambda r: int(r["threads"]), default={})
    for name, key in (("GEMM rate", "share_of_gemm"), ("best GEMM rate of the run", "share_of_best_gemm")):
        value = record.get(key)
        yield Bar(f"share of the {name} in fp32, batch 32", 85, "at least", value and 100 * value, "%")


def _size_bars(results: Results) -> Iterator[Bar]:
    for name, contestant, limit in (("fp32", "task", 62), ("int8", "task-int8", 17)):
        value = _read(results, contestant, lambda r: r["bytes"] / MEGABYTE)
        yield Bar(f"file with the task's vocabulary, {name}", limit, "at most", value, "MB")


def _memory_bars(results: Results) -> Iterator[Bar]:
    for name, contestant in (("fp32", "task"), ("int8", "task-int8")):
        for form, suffix in (("one file", ""), ("external data", "-external")):
            for batch, peak in ((1, "above_peak_bytes_one"), (32, "above_peak_bytes_many")):
                value = _read(results, contestant + suffix, partial(_peak_over_file, peak))
                yield Bar(f"peak memory, {name}, {form}, batch {batch}", 2.5, "at most", value, "x file")


def _peak_over_file(peak: str, record: Record) -> float:
    return float(record[peak] / record["bytes"])


def _read(results: Results, contestant: str, figure: Callable[[Record], Any]) -> float | None:
    record = find(results["footprint"], case=REFERENCE, contestant=contestant, provider="cpu")
    return None if record is None else float(figure(record))
