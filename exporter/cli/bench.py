"""`export-circuit bench`: how much faster a model is than a reference, held against a bar.

With --against it needs onnxruntime and onnx only: torch and transformers are not imported.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exporter.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from exporter.bench.baseline import Baseline
    from exporter.bench.options import BenchOptions
    from exporter.bench.report import BenchReport


def bench(
    file: Annotated[Path, typer.Argument(help="The ONNX file to measure.")],
    against: Annotated[
        Path | None,
        typer.Option(help="The ONNX file to measure against. Default: the dense model, fp32, all logits."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the dense model is now. Default: where it came from.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Prompts in a call; may be repeated. Default: the baseline's, or 1 and 32.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Take random prompts of so many tokens. Default: the file's own examples.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads. Default: the baseline's, or one for each core.")] = None,
    provider: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where both run.")] = "cpu",
    min_speedup: Annotated[
        float | None, typer.Option(help="Fail unless the file is this many times as fast as the reference.")
    ] = None,
    max_regression: Annotated[
        str | None,
        typer.Option(
            help="Fail if it is slower or larger by more than this, 10% or 0.1: than the baseline's model, or without "
            "a baseline slower than the reference. Default with a baseline: 10%."
        ),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="A baseline (.json) to hold it against.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write what is measured to --baseline, over what stands there.")
    ] = False,
    gate: Annotated[
        Literal["all", "time", "proxies"],
        typer.Option(help="What can fail: times, what is counted (nodes, FLOPs, bytes) without timing, or all."),
    ] = "all",
    seconds: Annotated[float, typer.Option(help="Measure one batch for no longer than this.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Measure a model against a reference, in alternating blocks; exit code 5 when it is below a bar.

    Example: [bold]export-circuit bench model.onnx --min-speedup 10 --baseline baseline.json[/bold]
    """
    from exporter.bench.baseline import Baseline, read_replaceable
    from exporter.bench.options import BenchOptions, parse_share
    from exporter.cli.display import make_screen

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
    held = None
    if baseline is not None and update_baseline:
        read_replaceable(baseline)  # refused before minutes of measuring
    elif baseline is not None:
        held = Baseline.load(baseline)
    report = _measure(file, against, options, held, model)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        screen = make_screen()
        screen.print(render_report(report))
        for note in report.notes:
            screen.print(f"note: {note}", markup=False, soft_wrap=True)
    if report.error is not None:
        raise report.error
    if baseline is not None and update_baseline:
        report.make_baseline().save(baseline)
        if not as_json:
            screen.print(f"wrote {baseline}", markup=False, soft_wrap=True)


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


def _measure(
    file: Path, against: Path | None, options: BenchOptions, baseline: Baseline | None, model: str | None
) -> BenchReport:
    """Measure, with the dense model in a temporary folder where nothing else is given to measure against."""
    from rich.console import Console

    from exporter.bench.run import needs_reference, run_bench

    if against is not None and model is not None:
        raise UsageError("--model says where the dense model is, --against replaces it; give one of them")
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        if console.is_terminal:  # a line, no spinner: that would run beside what is measured
            console.print(f"{text} ...", style="dim")

    with ExitStack() as stack:
        if against is None and needs_reference(options, baseline):
            from exporter.reference import export_reference

            say("exporting the dense model")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="export-circuit-"))
            against = export_reference(file, Path(folder) / "dense.onnx", model=model)
        return run_bench(file, against, options, baseline=baseline, on_batch=lambda n: say(f"measuring batch {n}"))


def render_report(report: BenchReport) -> Table:
    """A row for each batch, then what was counted."""
    from rich.table import Table
    from rich.text import Text

    title = " against ".join([Path(report.model).name, *dict.fromkeys(b.against for b in report.batches if b.against)])
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    prompts = "the file's examples, answers right" if report.prompts == "examples" else "random token ids"
    timed = "medians, 95 % bootstrap interval" if report.batches[0].against else "counted, not timed"
    table.caption = f"{report.provider}, {report.threads} threads; {prompts}; {timed}"
    for column in ("", "reference", "circuit", "speed-up", "at least"):
        table.add_column(column, justify="left" if column == "" else "right")
    for found in report.batches:
        if found.speedup is not None and found.ci95 is not None:
            low, high = found.ci95
            table.add_row(
                f"batch {found.batch}, {found.pos} tokens, {found.against}",
                f"{1e3 * (found.reference_seconds or 0):.2f} ms",
                f"{1e3 * (found.circuit_seconds or 0):.2f} ms",
                f"{found.speedup:.2f} x  [{low:.2f}, {high:.2f}]",
                "" if found.bar is None else f"{found.bar:.2f} x",
            )
    for found in {found.batch: found for found in reversed(report.batches)}.values():  # the reference comes first
        reference = None if found.reference is None else found.reference.flops
        table.add_row(f"GFLOPs, batch {found.batch}", *_compare(reference, found.circuit.flops, 1e9))
    first = report.batches[0]
    for label, name, unit in (
        ("nodes", "nodes", 1),
        ("parameters, M", "parameters", 1e6),
        ("weights, MB", "weight_bytes", 1e6),
        ("file, MB", "file_bytes", 1e6),
    ):
        table.add_row(label, *_compare(getattr(first.reference, name, None), getattr(first.circuit, name), unit))
    return table


def _compare(reference: int | None, circuit: int | None, unit: float) -> tuple[str, str, str]:
    """Two counts and how many times less the second is."""
    shown = ["" if n is None else f"{n / unit:,.0f}" if unit == 1 else f"{n / unit:,.3f}" for n in (reference, circuit)]
    return shown[0], shown[1], f"{reference / circuit:.2f} x" if reference and circuit else ""
