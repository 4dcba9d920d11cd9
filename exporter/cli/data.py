"""The commands for a user's own data: check a file, write one from a template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exporter.cli import options as opts
from exporter.cli.screen import make_screen
from exporter.errors import InputError, UsageError

if TYPE_CHECKING:
    from exporter.evidence.fitness import DataReport
    from exporter.tasks.lines import Problem

_MOST_PROBLEMS = 20


def check_data(
    file: opts.DataFile,
    model: opts.AskedModel = "auto",
    template: opts.FileTemplate = None,
    as_json: opts.AsJson = False,
) -> None:
    """Say what is wrong with a data file line by line, what will be used of it, and whether the model can do the task.

    Example: [bold]export-circuit check-data my.jsonl[/bold]
    """
    from exporter.evidence.fitness import check_data as check
    from exporter.loading.load import load_model
    from exporter.tasks import DataFileError

    try:
        report = check(file, load_model(model), template=template)
    except DataFileError as error:
        _print_problems(error.problems, as_json=as_json)
        raise _sum_up(file, error.problems) from None
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print_report(report)
    if report.fitness.verdict == "no":
        raise InputError(
            f"{report.model} cannot do this task: its accuracy on the selection set is {report.fitness}; choose "
            "another model or other prompts"
        )


def _print_problems(problems: Sequence[Problem], *, as_json: bool) -> None:
    if as_json:
        rows = [{"line": p.line, "row": p.row, "message": p.message} for p in problems]
        typer.echo(json.dumps({"problems": rows}, indent=1))
        return
    screen = make_screen()
    screen.say(*problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        screen.say(f"... and {len(problems) - _MOST_PROBLEMS} more")


def _sum_up(file: Path, problems: Sequence[Problem]) -> InputError:
    """The one error for a file with problems; it repeats the first where the list was cut short."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    first = f" (the first: {problems[0]})" if len(problems) > _MOST_PROBLEMS else ""
    return InputError(f"{file} has {count}; mend them and check again{first}")


def _print_report(report: DataReport) -> None:
    from exporter.cli.display import render_data_report

    screen = make_screen()
    for warning in report.warnings[:_MOST_PROBLEMS]:
        screen.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if len(report.warnings) > _MOST_PROBLEMS:
        screen.print(f"... and {len(report.warnings) - _MOST_PROBLEMS} more warnings (all with --json)")
    screen.print(render_data_report(report))


def make_data(
    template: opts.Template,
    fill: opts.Fill,
    out: opts.DataOut,
    answer: opts.Answer = None,
    force: opts.ForceData = False,
) -> None:
    """Write a data file from a template and a table: one row, one prompt.

    Example: [bold]export-circuit make-data --template "{city} lies in" --fill cities.csv --out my.jsonl[/bold]
    """
    from exporter.files import OutputSet
    from exporter.tasks.fill import fill_template

    if (suffix := out.suffix).lower() != ".jsonl":
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in .jsonl")
    text = fill_template(template, fill, answer=answer)
    with OutputSet(out, suffixes=(suffix,), force=force) as output:
        output.path(suffix).write_text(text, encoding="utf-8")
        output.commit()
    lines = text.removesuffix("\n").split("\n")  # a cell may hold what splitlines would cut at
    make_screen().say(
        f"wrote {len(lines)} prompts to {out}; the first:", lines[0], f"next: export-circuit check-data {out}"
    )
