"""Measure a model against others, and hold it against bars: `export-circuit bench` and its pytest fixture.

There are two things to be measured against. The *reference* (the dense model, or any other file) says how much faster
the circuit is: its bar is `min_speedup`. The *twin* of an earlier version, which a baseline holds (see `twin`), says
whether it has become slower: its bar is 1 / (1 + max_regression), on any machine. Without a baseline `max_regression`
is a bar for the reference, as which an earlier version can be given.

A measurement goes on until the 99 % interval of the speed-up lies on one side of its bar, and that decides. If it
still lies across when the time is over, the point estimate decides, and the report says that it was close.
Why: to fail only on an interval below the bar would let a real slow-down pass on every noisy machine, and to pass
only on one above it would fail without a change there. The point estimate makes neither error more likely: a bar of
10 % lies half-way between no change and 20 %, and a wrong verdict takes an error of half of that.

What is counted rather than measured (`proxies`) is compared exactly and decides by itself; see `baseline`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from exporter.bench.baseline import Baseline, compare_proxies
from exporter.bench.options import BenchOptions
from exporter.bench.proxies import Proxies, count_proxies
from exporter.bench.report import BatchResult, BenchReport
from exporter.bench.twin import write_twin
from exporter.bench.workload import BoundModel, Workload, choose_workload
from exporter.errors import InputError, UsageError
from exporter.evidence.latency import Call, Comparison, Effort, compare_calls, count_cores
from exporter.files.onnx_file import read_onnx

DEFAULT_BATCHES = (1, 32)
TWIN = "baseline.onnx"
_ROUGH = 0.05  # half the allowance that a baseline has by default


class Compare(Protocol):
    """How two calls are timed against each other: `latency.compare_calls`, or a test's own."""

    def __call__(self, reference: Call, circuit: Call, effort: Effort, /) -> Comparison:
        """Measure."""


def run_bench(
    model: str | Path,
    reference: str | Path | None,
    options: BenchOptions,
    *,
    baseline: Baseline | None = None,
    on_batch: Callable[[int], None] | None = None,
    compare: Compare = compare_calls,
) -> BenchReport:
    """Measure `model` against `reference` and hold it against the bars; both are ONNX files that take input_ids.

    The report's failures are not raised here (see `BenchReport.error`). `reference` may be None where it is not
    needed (`needs_reference`). Raises InputError for files or a baseline that do not fit, ExactnessError when the
    model no longer gives the answers that its file names, MissingRuntimeError without the provider.
    """
    threads, notes = _choose_threads(options, baseline)
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as folder:
        read_onnx(model)  # before a runtime opens what it names
        circuit = BoundModel(model, provider=options.provider, threads=threads)
        rivals: list[_Rival] = []
        for path, bar in _choose_rivals(reference, options, baseline, Path(folder)):
            read_onnx(path)
            rivals.append(_Rival(BoundModel(path, provider=options.provider, threads=threads), bar))
        usual = baseline.batches[0].pos if baseline is not None and baseline.batches else None
        workload = choose_workload([circuit, *(r.model for r in rivals)], length=options.length, usual=usual)
        circuit.bind(workload)  # the answers to all examples, whatever the batch
        results, failures, about = _measure_batches(circuit, rivals, workload, options, baseline, on_batch, compare)
    return BenchReport(
        model=str(model),
        reference=None if reference is None or not rivals else str(reference),
        provider=options.provider,
        threads=threads,
        prompts="random" if workload.answers is None else "examples",
        batches=tuple(results),
        failures=tuple(dict.fromkeys(failures)),  # most proxies are the same for every batch
        notes=tuple(dict.fromkeys([*notes, *about])),
    )


def needs_reference(options: BenchOptions, baseline: Baseline | None) -> bool:
    """Whether `run_bench` has to be given a reference: not to compare with a baseline alone."""
    return options.gate != "proxies" and (baseline is None or options.min_speedup is not None)


def _choose_threads(options: BenchOptions, baseline: Baseline | None) -> tuple[int, list[str]]:
    """How many threads to pin, and what to say of it. Raises InputError for another provider's baseline."""
    cores = count_cores()
    if baseline is None:
        return options.threads or cores, []
    if baseline.provider != options.provider:
        raise InputError(f"the baseline is of provider {baseline.provider}, not {options.provider}; keep one for each")
    threads = options.threads or min(baseline.threads, cores)
    note = f"{threads} threads, and {baseline.threads} in the baseline: the speed-up may differ for that alone"
    return threads, [] if threads == baseline.threads else [note]


@dataclass(frozen=True)
class _Bar:
    """The least speed-up that is allowed, and where it comes from."""

    speedup: float
    reason: str


@dataclass(frozen=True, eq=False)
class _Rival:
    """An open model to measure against, and its bar."""

    model: BoundModel
    bar: _Bar | None


def _choose_rivals(
    reference: str | Path | None, options: BenchOptions, baseline: Baseline | None, folder: Path
) -> Iterator[tuple[str | Path, _Bar | None]]:
    """What to measure against, the baseline's twin last; nothing where only proxies count."""
    if options.gate == "proxies":
        return
    if reference is None and needs_reference(options, baseline):
        raise UsageError("there is nothing to measure against; give a reference, or the gate 'proxies'")
    regression = _Bar(1 / (1 + options.allowed), f"{options.allowed:.0%} slower is allowed")
    if reference is not None:
        bars = [] if options.min_speedup is None else [_Bar(options.min_speedup, "asked for")]
        if baseline is None and options.max_regression is not None:
            bars.append(regression)
        yield reference, max(bars, key=lambda bar: bar.speedup, default=None)
    if baseline is not None:
        yield write_twin(baseline.graph, folder / TWIN), regression


def _measure_batches(
    circuit: BoundModel,
    rivals: Sequence[_Rival],
    workload: Workload,
    options: BenchOptions,
    baseline: Baseline | None,
    on_batch: Callable[[int], None] | None,
    compare: Compare,
) -> tuple[list[BatchResult], list[str], list[str]]:
    """Measure each batch against each rival, or only count it where there is none; results, failures and notes."""
    usual = DEFAULT_BATCHES if baseline is None else tuple(record.batch for record in baseline.batches)
    results: list[BatchResult] = []
    failures: list[str] = []
    notes: list[str] = []
    for batch in dict.fromkeys(options.batches or usual):
        if on_batch is not None:
            on_batch(batch)
        part = workload.repeat(batch)
        for rival in rivals or (None,):
            result = _measure(circuit, rival, part, options, compare)
            results.append(result)
            failures += _judge_time(result, rival)
            notes += _note_doubt(result, options)
        if baseline is not None:
            for change in compare_proxies(baseline, baseline.find_batch(batch, workload.pos), results[-1].circuit):
                if change.growth > options.allowed and options.gate != "time":
                    failures.append(f"it has {change.text}, +{options.allowed:.0%} allowed")
                else:
                    notes.append(f"{circuit.path.name} has {change.text}")
    return results, failures, notes


def _measure(
    circuit: BoundModel, rival: _Rival | None, workload: Workload, options: BenchOptions, compare: Compare
) -> BatchResult:
    """Time one batch against one rival, or only count it."""
    batch, pos = workload.input_ids.shape
    proxies = _count(circuit, workload)
    if rival is None:
        return BatchResult(batch, pos, proxies)
    bar = None if rival.bar is None else rival.bar.speedup
    effort = Effort(seconds=options.seconds, bar=bar)
    # the examples' answers are the circuit's own: a rival may answer otherwise
    timed = compare(rival.model.bind(replace(workload, answers=None)), circuit.bind(workload), effort)
    return BatchResult(
        batch,
        pos,
        proxies,
        against=rival.model.path.name,
        reference=_count(rival.model, workload),
        reference_seconds=timed.reference_seconds,
        circuit_seconds=timed.circuit_seconds,
        speedup=timed.ratio,
        ci95=timed.interval(),
        rounds=len(timed.circuit),
        bar=bar,
        place=None if bar is None else timed.place(bar),
    )


def _judge_time(result: BatchResult, rival: _Rival | None) -> Iterator[str]:
    """What is wrong with a batch's speed-up: where the interval leaves it open, the estimate decides."""
    if rival is None or rival.bar is None or result.speedup is None or result.ci95 is None:
        return
    if result.place == "below" or (result.place == "across" and result.speedup < rival.bar.speedup):
        low, high = result.ci95
        what = "the baseline's model" if result.against == TWIN else str(result.against)
        yield (
            f"at batch {result.batch} it is {result.speedup:.2f} times as fast as {what} [{low:.2f}, {high:.2f}], and "
            f"at least {rival.bar.speedup:.2f} is required ({rival.bar.reason})"
        )


def _note_doubt(result: BatchResult, options: BenchOptions) -> Iterator[str]:
    """That a verdict was close, or a figure is rough."""
    if result.place == "across":
        yield (
            f"batch {result.batch}: after {options.seconds:g} s the interval still lies across the bar of "
            f"{result.bar:.2f}, so the estimate decided; give more --seconds, or a quieter machine"
        )
    if result.bar is None and result.speedup is not None and result.ci95 is not None:
        reach = max(abs(end / result.speedup - 1) for end in result.ci95)
        if reach > _ROUGH:
            yield f"batch {result.batch}: the interval reaches {reach:.0%} far; measure on a quieter machine"


def _count(model: BoundModel, workload: Workload) -> Proxies:
    return count_proxies(model.path, {name: array.shape for name, array in model.make_feeds(workload).items()})
