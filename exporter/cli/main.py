"""The command line: options in, exit code and a table out. Printing is done in this package only.

Each command reads its options (`cli.options`), calls the function that does the work, and prints what `cli.display`
makes of the result.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from exporter.cli import options as opts
from exporter.cli.bench import bench
from exporter.cli.compare import compare
from exporter.cli.data import check_data, make_data
from exporter.cli.decode import run
from exporter.cli.exchange import convert, roc
from exporter.cli.export import export
from exporter.cli.screen import make_screen
from exporter.cli.serve import serve
from exporter.cli.sweep import sweep

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.callback(invoke_without_command=True)(export)
app.command("check-data")(check_data)
app.command("make-data")(make_data)
app.command("run")(run)
app.command("serve")(serve)
app.command("bench")(bench)
app.command("convert")(convert)
app.command("roc")(roc)
app.command("sweep")(sweep)
app.command("compare")(compare)


@app.command()
def tasks(model: opts.ExamplesModel = "bundled", as_json: opts.AsJson = False) -> None:
    """List the tasks, with an example prompt each.

    Example: [bold]export-circuit tasks[/bold]
    """
    from exporter.cli.display import render_tasks
    from exporter.evidence.fitness import require_tokenizer
    from exporter.loading.load import load_model
    from exporter.tasks import list_tasks

    rows = list_tasks(require_tokenizer(load_model(model)))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        make_screen().print(render_tasks(rows))


@app.command()
def inspect(file: opts.ExportedFile, as_json: opts.AsJson = False) -> None:
    """Say what an exported file is, and draw its circuit as a grid of layers by heads.

    Example: [bold]export-circuit inspect model.onnx[/bold]
    """
    from exporter.cli.display import render_inspection
    from exporter.cli.inspection import inspect_file

    inspection = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(inspection.to_json(), indent=1))
    else:
        make_screen().print(render_inspection(inspection))


@app.command()
def verify(
    file: opts.OwnFile, model: opts.DenseModel = None, task: opts.TaskFile = None, as_json: opts.AsJson = False
) -> None:
    """Run the exactness gate again on a file: hooked = rewritten = ONNX on held-out prompts.

    Example: [bold]export-circuit verify model.onnx[/bold]
    """
    from exporter.job.build import reverify

    exactness = reverify(file, model=model, task=task)
    if as_json:
        typer.echo(json.dumps(asdict(exactness), indent=1))
        return
    make_screen().say(
        f"{file} is exact on {exactness.prompts} prompts: hooked = rewritten to {exactness.hooked_vs_rewritten:.1e}, "
        f"rewritten = ONNX to {exactness.rewritten_vs_onnx:.1e}, allowed {exactness.limit:.1e}"
    )


@app.command()
def report(file: opts.ReportedFile, out: opts.ReportOut = None, force: opts.ForceReport = False) -> None:
    """Make the page for reading again, from the manifest alone: what it is, what it costs, how far to trust it.

    Example: [bold]export-circuit report model.json[/bold]
    """
    from exporter.outputs.report import write_report

    make_screen().say(f"wrote {write_report(file, out, force=force)}")


@app.command()
def doctor(as_json: opts.AsJson = False) -> None:
    """Check the installation: versions, ONNX Runtime and its providers, the hub; say what mends what is missing.

    Example: [bold]export-circuit doctor[/bold]
    """
    from exporter.cli.display import render_checks
    from exporter.cli.doctor import diagnose
    from exporter.errors import MissingRuntimeError

    checks = diagnose()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        make_screen().print(render_checks(checks))
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        raise MissingRuntimeError(f"missing: {', '.join(missing)}; the table says how to mend it")
