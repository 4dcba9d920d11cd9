"""The commands for a user's own data: check a file, write one from a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from exporter.errors import InputError, UsageError

_MOST_PROBLEMS = 20


def check_data(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .csv file with prompts and answers.", readable=False)],
    model: Annotated[
        str, typer.Option(help="Whose tokens, and who is asked: a checkpoint folder, a hub name, 'bundled', 'auto'.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong with a data file line by line, what will be used of it, and whether the model can do the task.

    Example: [bold]export-circuit check-data my.jsonl[/bold]
    """
    from exporter.cli.display import make_screen, render_data_report
    from exporter.data_check import check_data as check
    from exporter.loading import load_model
    from exporter.tasks import DataFileError

    screen = make_screen()
    try:
        report = check(file, load_model(model))
    except DataFileError as error:
        problems = error.problems
        if as_json:
            typer.echo(json.dumps({"problems": [{"line": p.line, "message": p.message} for p in problems]}, indent=1))
        else:
            for problem in problems[:_MOST_PROBLEMS]:
                screen.print(str(problem), markup=False, soft_wrap=True)
            if len(problems) > _MOST_PROBLEMS:
                screen.print(f"... and {len(problems) - _MOST_PROBLEMS} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{file} has {count}; mend them and check again") from None
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        screen.print(render_data_report(report))
    if report.fitness.verdict == "no":
        raise InputError(
            f"{report.model} cannot do this task: its accuracy on the selection set is {report.fitness}; choose "
            "another model or other prompts"
        )


def make_data(
    template: Annotated[str, typer.Option(help='The prompt with slots: "The {noun} lasted from".')],
    fill: Annotated[
        Path, typer.Option(help="A .csv file; its first line names the slots, each row is one prompt.", readable=False)
    ],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    answer: Annotated[
        str | None, typer.Option(help='The answer with slots: " {year}". Default: the column answer.')
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a data file from a template and a table: one row, one prompt.

    Example: [bold]export-circuit make-data --template "{city} lies in" --fill cities.csv --out my.jsonl[/bold]
    """
    from exporter.cli.display import make_screen
    from exporter.files import OutputSet
    from exporter.tasks.fill import fill_template

    if out.suffix != ".jsonl":
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in .jsonl")
    text = fill_template(template, fill, answer=answer)
    with OutputSet(out, suffixes=(".jsonl",), force=force) as output:
        output.path(".jsonl").write_text(text, encoding="utf-8")
        output.commit()
    lines = text.removesuffix("\n").split("\n")  # a cell may hold what splitlines would cut at
    screen = make_screen()
    screen.print(f"wrote {len(lines)} prompts to {out}; the first:", markup=False, soft_wrap=True)
    screen.print(lines[0], markup=False, soft_wrap=True)
    screen.print(f"next: export-circuit check-data {out}", markup=False, soft_wrap=True)
