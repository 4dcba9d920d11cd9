"""The rule that decides, with measurements made up: bars, intervals, doubt, proxies. Nothing is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import make_model

from exporter.bench.baseline import Baseline
from exporter.bench.options import BenchOptions, parse_share
from exporter.bench.report import BenchReport
from exporter.bench.run import run_bench
from exporter.errors import InputError, RegressionError, UsageError
from exporter.evidence.latency import Call, Comparison, Effort, count_cores
from exporter.graph.export import export_onnx

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from slow_down import plant_mlp

THREADS = count_cores()
Compare = Callable[[Call, Call, Effort], Comparison]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense.onnx, circuit.onnx, and slow.onnx, which is the circuit with an MLP planted."""
    folder = tmp_path_factory.mktemp("files")
    export_onnx(make_model(n_layers=4).dense, folder / "dense.onnx")
    export_onnx(make_model(n_layers=2).dense, folder / "circuit.onnx")
    plant_mlp(folder / "circuit.onnx", folder / "slow.onnx", 40)
    return folder


def measured(*ratios: float, efforts: list[Effort] | None = None) -> Compare:
    """A comparison that finds these ratios, one a round; keeps what it was asked for."""

    def compare(reference: Call, circuit: Call, effort: Effort) -> Comparison:
        reference(), circuit()
        if efforts is not None:
            efforts.append(effort)
        return Comparison(tuple(0.01 * ratio for ratio in ratios), (0.01,) * len(ratios))

    return compare


def scattered(center: float, spread: float) -> Compare:
    return measured(*np.random.default_rng(0).normal(center, spread, 31))


def bench(files: Path, compare: Compare, *, model: str = "circuit.onnx", baseline: Baseline | None = None,
          **options: object) -> BenchReport:  # fmt: skip
    options = {"batches": (2,)} | options
    return run_bench(files / model, files / "dense.onnx", BenchOptions(**options), baseline=baseline, compare=compare)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def baseline(files: Path) -> Baseline:
    """The circuit's, twice as fast as dense at batches 2 and 3."""
    return bench(files, measured(2.0, 2.0), batches=(2, 3)).make_baseline()


def test_a_report_says_what_was_measured(files: Path) -> None:
    report = bench(files, measured(2.0, 3.0, 4.0), batches=(2, 3, 2))
    first, second = report.batches
    assert (first.batch, second.batch, first.pos) == (2, 3, 12)
    assert (first.speedup, first.reference_seconds, first.circuit_seconds) == (3.0, 0.03, 0.01)
    assert first.reference is not None and first.reference.nodes > first.circuit.nodes
    assert second.circuit.flops == first.circuit.flops * 3 / 2  # type: ignore[operator]
    assert report.failures == () and report.error is None
    assert "interval reaches 33% far" in report.notes[0]
    assert report.to_json()["batches"][0]["ci95"] == (2.0, 4.0)


@pytest.mark.parametrize(
    ("center", "spread", "place", "fails"),
    [
        (1.0, 0.005, "above", False),
        (0.83, 0.005, "below", True),
        (0.95, 0.2, "across", False),  # the estimate decides
        (0.85, 0.2, "across", True),
    ],
)
def test_the_interval_decides_and_else_the_estimate(
    center: float, spread: float, place: str, fails: bool, files: Path, baseline: Baseline
) -> None:
    report = bench(files, scattered(center, spread), baseline=baseline)
    found = report.batches[-1]
    assert (found.against, found.bar) == ("baseline.onnx", pytest.approx(1 / 1.1))
    assert found.place == place
    assert (report.error is not None) == fails
    assert any("the estimate decided" in note for note in report.notes) == (place == "across")


def test_the_error_says_what_was_measured_what_is_allowed_and_what_to_do(files: Path, baseline: Baseline) -> None:
    error = bench(files, measured(0.8, 0.8), baseline=baseline, max_regression=0.2).error
    assert isinstance(error, RegressionError)
    assert str(error) == (
        "circuit.onnx: at batch 2 it is 0.80 times as fast as the baseline's model [0.80, 0.80], and at least 0.83 is "
        "required (20% slower is allowed);\n"
        "make it faster, or allow it: a lower --min-speedup, a higher --max-regression, or --update-baseline"
    )
    assert error.exit_code == 5


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        ({}, None),
        ({"min_speedup": 1.5}, 1.5),
        ({"max_regression": 0.25}, 0.8),  # without a baseline: against the reference itself
        ({"min_speedup": 1.5, "max_regression": 0.25}, 1.5),
        ({"min_speedup": 0.5, "max_regression": 0.25}, 0.8),
    ],
)
def test_the_highest_bar_counts(options: dict[str, object], bar: float | None, files: Path) -> None:
    efforts: list[Effort] = []
    report = bench(files, measured(bar or 1.0, efforts=efforts), seconds=7.0, **options)
    (found,) = report.batches
    assert found.bar == efforts[0].bar == (None if bar is None else pytest.approx(bar))
    assert efforts[0].seconds == 7.0
    assert report.error is None  # exactly at the bar is enough
    if bar is not None:
        assert bench(files, measured(0.999 * bar), **options).error is not None


def test_with_a_baseline_the_reference_has_the_first_bar_and_the_twin_the_second(
    files: Path, baseline: Baseline
) -> None:
    def bars(**options: object) -> list[tuple[str | None, float | None]]:
        report = bench(files, measured(9.0), baseline=baseline, max_regression=0.25, **options)
        return [(found.against, found.bar) for found in report.batches]

    assert bars() == [("dense.onnx", None), ("baseline.onnx", 0.8)]
    assert bars(min_speedup=3.0) == [("dense.onnx", 3.0), ("baseline.onnx", 0.8)]
    alone = run_bench(files / "circuit.onnx", None, BenchOptions(), baseline=baseline, compare=measured(1.0))
    assert [(found.batch, found.against) for found in alone.batches] == [(2, "baseline.onnx"), (3, "baseline.onnx")]
    assert alone.batches[0].reference is not None
    assert alone.batches[0].reference.flops == alone.batches[0].circuit.flops
    with pytest.raises(UsageError, match="nothing to measure against"):
        run_bench(files / "circuit.onnx", None, BenchOptions(min_speedup=2.0), baseline=baseline)


def test_a_planted_mlp_fails_by_time_alone_and_by_proxies_alone(files: Path, baseline: Baseline) -> None:
    slow = {"model": "slow.onnx", "baseline": baseline}
    by_time = bench(files, measured(0.8), gate="time", **slow)  # type: ignore[arg-type]
    assert [text.split(" it is ")[0] for text in by_time.failures] == ["at batch 2"]
    options = BenchOptions(gate="proxies")
    by_proxies = run_bench(files / "slow.onnx", None, options, baseline=baseline, compare=never)
    assert any("FLOPs" in text for text in by_proxies.failures)
    assert all("+10% allowed" in text for text in by_proxies.failures)
    assert len(by_proxies.batches) == 2  # the baseline's
    fast = bench(files, measured(1.0), **slow)  # type: ignore[arg-type]
    assert fast.failures == by_proxies.failures[: len(fast.failures)]
    assert bench(files, measured(1.0), gate="time", **slow).failures == ()  # type: ignore[arg-type]
    assert bench(files, measured(1.0), max_regression=3.0, **slow).failures == ()  # type: ignore[arg-type]


def never(*_: object) -> Comparison:
    raise AssertionError("timed")


def test_smaller_growth_is_said_and_not_failed(files: Path, baseline: Baseline) -> None:
    nodes = baseline.circuit.nodes
    older = baseline.model_copy(update={"circuit": baseline.circuit.model_copy(update={"nodes": nodes - 1})})
    report = bench(files, measured(2.0), baseline=older)
    assert report.error is None
    assert report.notes == (f"circuit.onnx has {nodes} nodes, {nodes - 1} in the baseline (+{1 / (nodes - 1):.1%})",)


def test_a_baseline_of_something_else_is_refused(files: Path, baseline: Baseline) -> None:
    with pytest.raises(InputError, match="has no batch of 5 x 12 tokens"):
        bench(files, measured(2.0), baseline=baseline, batches=(5,))
    with pytest.raises(InputError, match="has no batch of 2 x 7 tokens"):
        bench(files, measured(2.0), baseline=baseline, length=7)
    damaged = baseline.model_copy(update={"graph": "text"})
    with pytest.raises(InputError, match="the graph in the baseline is damaged; write a new one"):
        bench(files, measured(2.0), baseline=damaged)
    cuda = baseline.model_copy(update={"provider": "cuda"})
    with pytest.raises(InputError, match="the baseline is of provider cuda, not cpu"):
        bench(files, measured(2.0), baseline=cuda)


def test_threads_are_the_baselines_where_there_are_as_many(files: Path, baseline: Baseline) -> None:
    one = baseline.model_copy(update={"threads": 1})
    assert bench(files, measured(2.0), baseline=one).threads == 1
    many = baseline.model_copy(update={"threads": 1000})
    report = bench(files, measured(2.0), baseline=many)
    assert report.threads == THREADS
    assert "1000 in the baseline" in report.notes[0]
    assert bench(files, measured(2.0), threads=1).threads == 1
    assert bench(files, measured(2.0)).threads == THREADS


@pytest.mark.parametrize(
    "options",
    [
        {"min_speedup": 0.0}, {"min_speedup": float("nan")}, {"max_regression": -0.1},
        {"max_regression": float("inf")}, {"batches": (0,)}, {"threads": 0}, {"length": 0}, {"seconds": 0.0},
        {"batches": (3_000_000_000,)}, {"threads": 99_999}, {"length": 2**40},
        {"gate": "none"}, {"provider": "tpu"},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        BenchOptions(**options)  # type: ignore[arg-type]


def test_no_baseline_comes_of_no_times(files: Path, baseline: Baseline) -> None:
    report = run_bench(files / "circuit.onnx", None, BenchOptions(gate="proxies"), baseline=baseline)
    with pytest.raises(UsageError, match="a baseline needs times"):
        report.make_baseline()
    with pytest.raises(UsageError, match="nothing to measure against"):
        run_bench(files / "circuit.onnx", None, BenchOptions())


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 7.5 % ", 0.075), (".5", 0.5), ("0", 0.0), ("150%", 1.5)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["10", "1", "-0.1", "ten", "", "%", "10%%", "nan", "inf", "1e-1"])
def test_no_shares(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no share; write it like 10% or 0\.1"):
        parse_share(text)
