"""`export-circuit compare`: what else could do the task, how well, how fast, and how large it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from exporter.cli import options as opts
from exporter.cli import study_options as study
from exporter.cli.screen import Sheet, as_text, make_errors, make_screen
from exporter.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.studies.compare_record import Comparison, Point


def compare(
    task: opts.Task = None,
    model: opts.Model = "auto",
    only: study.Only = None,
    sizes: study.ComparedSizes = "20%,10%,5%,3%",
    out: study.ComparisonOut = None,
    threads: study.ComparedThreads = None,
    seed: opts.Seed = 0,
    patching_prompts: opts.PatchingPrompts = None,
    selection_prompts: opts.SelectionPrompts = 250,
    test_prompts: opts.TestPrompts = 500,
    force: study.ForceComparison = False,
    as_json: opts.AsJsonOnly = False,
) -> None:
    """Compare the circuit with what one would do instead: a bag of words, probes, students, other pruning.

    Example: [bold]export-circuit compare --task acronym --only ours,tfidf-logistic,probe[/bold]
    """
    from exporter.studies.compare import CompareOptions, parse_names, parse_sizes, run_comparison
    from exporter.tasks import SplitSizes

    if task is None:
        raise UsageError("--task is missing; give a name from `export-circuit tasks`, or a .jsonl or .csv file")
    prompts = SplitSizes(patching=patching_prompts, selection=selection_prompts, test=test_prompts)
    options = CompareOptions(
        task, model, tuple(parse_names(only)), parse_sizes(sizes), prompts, seed, threads, out, force
    )
    found = run_comparison(options, on_point=_say)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    screen = make_screen()
    screen.print(render_comparison(found))
    data = found.to_json()
    notes = [f"{name}: {result['note']}" for name, result in data["contestants"].items() if result["note"]]
    screen.say(*notes, *data["sentences"])


def _say(point: Point) -> None:
    console = make_errors()
    if console.is_terminal:  # a line, no spinner: that would run beside what is measured
        console.print(as_text(f"{point.name}: {point.test.accuracy:.1%}, {point.latency_ms:.3g} ms", style="dim"))


def render_comparison(found: Comparison) -> RenderableType:
    """A row for each system."""
    unseen = list(dict.fromkeys(name for point in found.points for name in point.unseen))
    table = Sheet(title=f"{found.key['task']} on {found.key['model']}", caption_justify="left")
    table.caption = (
        f"{found.machine['processor']}, {found.key['threads']} threads; batch 1, median of alternating blocks; "
        f"networks: {found.form}"
    )
    table.add_column("", overflow="fold")
    heads = ("test", *unseen, "parameters", "held in all", "ms", "of dense", "made in s")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for point in found.points:
        low, high = point.test.ci95
        others = [f"{100 * point.unseen[name].accuracy:.1f}" if name in point.unseen else "" for name in unseen]
        table.add_row(
            point.name,
            f"{100 * point.test.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            *others,
            f"{point.parameters:,}",
            f"{point.held:,}",
            f"{point.latency_ms:.3g}",
            f"{point.speedup:.2f} x",
            f"{point.seconds:.1f}",
        )
    return table
