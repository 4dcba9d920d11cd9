"""`export-circuit bench`: how much faster a model is than a reference, held against a bar.

With --against it needs onnxruntime and onnx only: torch and transformers are not imported.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exporter.cli import options as opts
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.bench.baseline import Baseline
    from exporter.bench.options import BenchOptions
    from exporter.bench.report import BenchReport


def bench(
    file: opts.MeasuredFile,
    against: opts.Against = None,
    model: opts.DenseModel = None,
    batch: opts.Batch = None,
    length: opts.Length = None,
    threads: opts.Threads = None,
    provider: opts.Provider = "cpu",
    min_speedup: opts.MinSpeedup = None,
    max_regression: opts.MaxRegression = None,
    baseline: opts.BaselineFile = None,
    update_baseline: opts.UpdateBaseline = False,
    gate: opts.Gate = "all",
    seconds: opts.Seconds = 30.0,
    as_json: opts.AsJsonOnly = False,
) -> None:
    """Measure a model against a reference, in alternating blocks; exit code 5 when it is below a bar.

    Example: [bold]export-circuit bench model.onnx --min-speedup 10 --baseline baseline.json[/bold]
    """
    from exporter.bench.options import BenchOptions, parse_share

    options = BenchOptions(
        batches=tuple(batch or ()),
        length=length,
        threads=threads,
        provider=provider,
        min_speedup=min_speedup,
        max_regression=None if max_regression is None else parse_share(max_regression),
        gate=gate,
        seconds=seconds,
    )
    _check(options, baseline, update_baseline)
    held = _load_baseline(baseline, update=update_baseline)
    report = _measure(file, against, options, held, model)
    _finish(report, baseline if update_baseline else None, as_json=as_json)


def _check(options: BenchOptions, baseline: Path | None, update: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if update and baseline is None:
        raise UsageError("--update-baseline is missing the file to write; give --baseline too")
    if update and options.gate != "all":
        raise UsageError("--update-baseline needs times and proxies; leave --gate out")
    if options.gate == "proxies" and baseline is None:
        raise UsageError("--gate proxies compares with a baseline; give --baseline")
    if options.gate == "proxies" and options.min_speedup is not None:
        raise UsageError("--min-speedup is about times; leave it or --gate proxies out")


def _load_baseline(path: Path | None, *, update: bool) -> Baseline | None:
    """The baseline to compare with; one that is to be replaced is only looked at, before minutes of measuring."""
    from exporter.bench.baseline import Baseline, read_replaceable

    if path is None:
        return None
    if update:
        read_replaceable(path)
        return None
    return Baseline.load(path)


def _measure(
    file: Path, against: Path | None, options: BenchOptions, baseline: Baseline | None, model: str | None
) -> BenchReport:
    """Measure, with the dense model in a temporary folder where nothing else is given to measure against."""
    from exporter.bench.run import needs_reference, run_bench
    from exporter.cli.screen import as_text, make_errors

    if against is not None and model is not None:
        raise UsageError("--model says where the dense model is, --against replaces it; give one of them")
    console = make_errors()

    def say(text: str) -> None:
        if console.is_terminal:  # a line, no spinner: that would run beside what is measured
            console.print(as_text(f"{text} ...", style="dim"))

    with ExitStack() as stack:
        if against is None and needs_reference(options, baseline):
            from exporter.outputs.reference import export_reference

            say("exporting the dense model")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="export-circuit-"))
            against = export_reference(file, Path(folder) / "dense.onnx", model=model)
        return run_bench(file, against, options, baseline=baseline, on_batch=lambda n: say(f"measuring batch {n}"))


def _finish(report: BenchReport, new_baseline: Path | None, *, as_json: bool) -> None:
    """Print the report; then raise its error, or write the baseline."""
    from exporter.cli.display import render_bench
    from exporter.cli.screen import make_screen

    screen = make_screen()
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        screen.print(render_bench(report))
        screen.say(*(f"note: {note}" for note in report.notes))
    if report.error is not None:
        raise report.error
    if new_baseline is not None:
        report.make_baseline().save(new_baseline)
        if not as_json:
            screen.say(f"wrote {new_baseline}")
