"""A fixture for latency regression tests in a user's own suite: `circuit_benchmark`, on top of pytest-benchmark.

    def test_latency(circuit_benchmark):
        circuit_benchmark("model.onnx", min_speedup=10, baseline="baseline.json")

It measures and judges as `export-circuit bench` does, then lets pytest-benchmark time the model alone, so that
its table and JSON have it, with the comparison in `extra_info`. pytest loads this module in every run of an
environment that the package is installed in, so nothing heavy is imported before the fixture is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from exporter.bench.options import BenchOptions
    from exporter.bench.report import BatchResult, BenchReport

_OPTION = "--update-baseline"
_ROUNDS = 20


class CircuitBenchmark:
    """What the fixture `circuit_benchmark` gives; it is called once in a test."""

    def __init__(self, benchmark: Any, make_reference: Callable[[Path], Path], *, update: bool) -> None:
        self._benchmark = benchmark
        self._make_reference = make_reference
        self._update = update

    def __call__(
        self,
        model: str | Path,
        *,
        against: str | Path | None = None,
        baseline: str | Path | None = None,
        min_speedup: float | None = None,
        max_regression: float | str | None = None,
        batch: int = 1,
        length: int | None = None,
        threads: int | None = None,
        provider: Literal["cpu", "cuda"] = "cpu",
        gate: Literal["all", "time", "proxies"] = "all",
        seconds: float = 30.0,
    ) -> BenchReport:
        """Measure `model` and fail the test where it is below a bar; see `bench` and `BenchOptions`.

        Paths are as Python has them, relative to the working folder. `against`: an ONNX file; default, the dense
        model that `model` came from, exported once in a run. max_regression: 0.1 or "10%". One batch a test:
        parametrize the test for more. With pytest's --update-baseline the file `baseline` is written instead of
        compared with. Where pytest-benchmark does not time (--benchmark-disable, or under xdist), answers and
        proxies are checked alone. Raises RegressionError below a bar, and what `run_bench` raises.
        """
        __tracebackhide__ = True
        from exporter.bench.options import BenchOptions, parse_share

        if isinstance(max_regression, str):
            max_regression = parse_share(max_regression)
        timed = self._benchmark.enabled and gate != "proxies"
        options = BenchOptions(
            batches=(batch,),
            length=length,
            threads=threads,
            provider=provider,
            min_speedup=min_speedup,
            max_regression=max_regression,
            gate=gate if timed else "proxies",
            seconds=seconds,
        )
        if baseline is not None and self._update:
            return self._measure_anew(model, against, baseline, options)
        holds = baseline is not None and (timed or gate != "time")
        return self._measure(model, against, baseline if holds else None, options)

    def _measure(
        self, model: str | Path, against: str | Path | None, baseline: str | Path | None, options: BenchOptions
    ) -> BenchReport:
        """Measure, and raise the report's error."""
        __tracebackhide__ = True
        from exporter.bench.baseline import Baseline
        from exporter.bench.run import needs_reference, run_bench

        held = None if baseline is None else Baseline.load(baseline)
        if against is None and needs_reference(options, held):
            against = self._make_reference(Path(model))
        report = run_bench(model, None if options.gate == "proxies" else against, options, baseline=held)
        self._time_alone(report, options)
        if report.error is not None:
            raise report.error
        return report

    def _measure_anew(
        self, model: str | Path, against: str | Path | None, baseline: str | Path, options: BenchOptions
    ) -> BenchReport:
        """Measure without a baseline, and write what is measured as the new one."""
        __tracebackhide__ = True
        from exporter.bench.baseline import read_replaceable
        from exporter.errors import UsageError

        if options.gate == "proxies":
            raise UsageError(f"{_OPTION} needs times; leave --benchmark-disable, xdist and the gate 'proxies' out")
        read_replaceable(baseline)
        report = self._measure(model, against, None, options)
        report.make_baseline().save(baseline)
        return report

    def _time_alone(self, report: BenchReport, options: BenchOptions) -> None:
        """Give the model to pytest-benchmark, and the comparison to its `extra_info`."""
        from exporter.bench.workload import BoundModel, choose_workload

        result = report.batches[-1]  # against the baseline, where there is one
        bound = BoundModel(report.model, provider=options.provider, threads=report.threads)
        workload = choose_workload([bound], length=options.length, usual=result.pos).repeat(result.batch)
        self._benchmark.pedantic(bound.bind(workload), rounds=_ROUNDS, warmup_rounds=2)
        self._benchmark.extra_info |= _describe(report, result)


def _describe(report: BenchReport, result: BatchResult) -> dict[str, Any]:
    """What was measured as a flat dictionary: pytest-benchmark shows one level of names."""
    circuit = {f"circuit_{name}": value for name, value in vars(result.circuit).items()}
    measured = {
        name: getattr(result, name)
        for name in ("against", "speedup", "ci95", "rounds", "bar", "place")
        if result.speedup is not None
    }
    names = {"model": report.model, "reference": report.reference, "provider": report.provider}
    return {**names, "threads": report.threads, "batch": result.batch, "pos": result.pos, **measured, **circuit}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --update-baseline`."""
    parser.getgroup("export-circuit").addoption(
        _OPTION,
        action="store_true",
        help="circuit_benchmark writes its baseline files instead of comparing with them.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixture in the form that this run can have."""
    plugins = config.pluginmanager
    has_benchmark = plugins.hasplugin("benchmark") or plugins.hasplugin("pytest_benchmark.plugin")
    plugins.register(_WithBenchmark() if has_benchmark else _WithoutBenchmark(), "export-circuit-fixtures")


@pytest.fixture(scope="session")
def _circuit_references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Dense models as ONNX files, each written once."""
    made: dict[Path, Path] = {}

    def make(model: Path) -> Path:
        if model not in made:
            from exporter.outputs.reference import export_reference

            folder = tmp_path_factory.mktemp("dense")
            made[model] = export_reference(model, folder / "dense.onnx")
        return made[model]

    return make


class _WithBenchmark:
    """The fixture asks for `benchmark` by name, so that --benchmark-only and --benchmark-skip know its tests."""

    @pytest.fixture
    def circuit_benchmark(
        self, benchmark: Any, _circuit_references: Callable[[Path], Path], pytestconfig: pytest.Config
    ) -> CircuitBenchmark:
        """Measure an ONNX model against its dense original or another file; see `CircuitBenchmark.__call__`."""
        return CircuitBenchmark(benchmark, _circuit_references, update=bool(pytestconfig.getoption(_OPTION)))


class _WithoutBenchmark:
    """What stands there where pytest-benchmark is missing or switched off."""

    @pytest.fixture
    def circuit_benchmark(self) -> None:
        """Say what is missing."""
        pytest.fail(
            "circuit_benchmark needs pytest-benchmark: pip install 'export-circuit[pytest]', and leave "
            "-p no:benchmark out (--benchmark-disable is the way to skip the timing)",
            pytrace=False,
        )
