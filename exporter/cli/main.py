"""The command line: options in, exit code and a table out. All printing is done here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from exporter.cli.bench import bench
from exporter.cli.data import check_data, make_data
from exporter.cli.run import run
from exporter.errors import UsageError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("check-data")(check_data)
app.command("make-data")(make_data)
app.command("run")(run)
app.command("bench")(bench)

AblationChoice = Literal["mean", "zero"]
MeanChoice = Literal["position", "global"]


def _screen(*, quiet: bool = False) -> Console:
    from exporter.cli.display import make_screen

    return make_screen(quiet=quiet)


def _errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def export(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(help="What the model shall do: a name from `export-circuit tasks`, or a .jsonl or .csv file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The ONNX file to write; its manifest goes beside it.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A folder to write: model, tokenizer, configuration, card and run.py.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A checkpoint folder, a .gguf file, a hub name, 'bundled', 'smollm2', or 'auto': GPT-2 Small, else "
            "bundled."
        ),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="KL threshold per step, in nats. Default: the task's own.")
    ] = None,
    ablation: Annotated[
        AblationChoice | None, typer.Option(help="What replaces a removed component. Default: mean.")
    ] = None,
    mean: Annotated[
        MeanChoice | None,
        typer.Option(help="Means by position (fixed prompt length), or over all (free length). Default: position."),
    ] = None,
    align: Annotated[
        Literal["left", "right"] | None,
        typer.Option(help="Count positions from the first token, or the last. Default: left."),
    ] = None,
    mlps: Annotated[bool, typer.Option("--mlps/--no-mlps", help="Search MLPs too, or keep all of them.")] = True,
    circuit: Annotated[
        Path | None, typer.Option(help="Export this circuit (JSON, or a manifest) without a search.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Of the task ioi: 'all', or 'paper' for its single template.")
    ] = None,
    letters: Annotated[int | None, typer.Option(help="Of the task acronym: how many to predict, 1 or 3.")] = None,
    with_past: Annotated[
        bool, typer.Option("--with-past", help="Keep keys and values between calls, for generating token by token.")
    ] = False,
    logits: Annotated[
        Literal["all", "last", "answers"],
        typer.Option(help="Give logits at all positions, at the last one, or there for the task's answers alone."),
    ] = "last",
    vocab: Annotated[
        Literal["full", "task"],
        typer.Option(help="Keep all embeddings, or those of the task's tokens; the file tells of prompts with others."),
    ] = "full",
    precision: Annotated[
        Literal["fp32", "int8", "fp16", "bf16"],
        typer.Option(help="Numbers of the file: int8 for CPUs, fp16 or bf16 for CUDA; gated on the test set."),
    ] = "fp32",
    int8_scales: Annotated[
        Literal["tensor", "token"],
        typer.Option(help="In int8: a scale for the whole batch, or for each token, so that prompts do not meet."),
    ] = "tensor",
    target: Annotated[
        Literal["portable", "ort"], typer.Option(help="Standard operators, or ONNX Runtime's own where they win.")
    ] = "portable",
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Write the weights into a file of their own, to be memory-mapped.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task's sets.")] = 0,
    patching_prompts: Annotated[int, typer.Option(min=1, help="Prompts that the means are taken on.")] = 250,
    selection_prompts: Annotated[int, typer.Option(min=1, help="Prompts that the search reads.")] = 250,
    test_prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts for the final figures.")] = 500,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB that the search may hold beside the model. Default: half of what is free.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the search runs.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="What the search computes in; what is exported is float32."),
    ] = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the journal of a killed job, and keep it on Ctrl-C.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite an existing output; take a task that the model fails at.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, and nothing else, on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find the circuit of a task in a language model, rebuild the model with it, and export it to ONNX.

    Example: [bold]export-circuit --task acronym --out model.onnx[/bold]
    """
    if context.invoked_subcommand is not None:
        if task is not None or out is not None or bundle is not None:
            raise UsageError(f"--task, --out and --bundle do not go with the command {context.invoked_subcommand!r}")
        return
    if task is None or (out is None and bundle is None and not dry_run):
        missing = "--task" if task is None else "--out or --bundle"
        raise UsageError(
            f"{missing} is missing; try: export-circuit --task acronym --out model.onnx (or: export-circuit --help)"
        )
    from exporter.job import Job
    from exporter.pipeline import run_job
    from exporter.tasks import SplitSizes

    job = Job(
        task=task,
        out=out,
        model=model,
        revision=revision,
        alpha=alpha,
        ablation=ablation,
        mean=mean,
        align=align,
        mlps=mlps,
        circuit=circuit,
        seed=seed,
        sizes=SplitSizes(patching=patching_prompts, selection=selection_prompts, test=test_prompts),
        parameters={k: v for k, v in (("template", template), ("letters", letters)) if v is not None},
        memory_limit=None if memory_limit is None else int(memory_limit * 2**30),
        device=device,
        dtype=dtype,
        resume=resume,
        force=force,
        bundle=bundle,
        with_past=with_past,
        logits=logits,
        vocab=vocab,
        target=target,
        precision=precision,
        scales=int8_scales,
        external_data=external_data,
    )
    if dry_run:
        _print_plan(job, quiet=quiet, as_json=as_json)
        return
    from exporter.cli.display import JobProgress, render_result

    errors, start = _errors(), time.perf_counter()
    said: set[str] = set()

    def say(notes: Sequence[str]) -> None:
        _print_notes([] if quiet else [note for note in notes if note not in said])
        said.update(notes)

    silent = quiet or as_json or int(os.environ.get("RANK", "0")) > 0
    with JobProgress(errors, disable=silent or not errors.is_terminal) as progress:
        manifest = run_job(
            job,
            on_stage=progress.on_stage,
            on_plan=lambda plan: say(plan.notes),
            on_decision=progress.on_decision,
        )
    if manifest is None:  # a rank that only helped
        return
    say(manifest.notes)
    if as_json:
        typer.echo(manifest.to_json(), nl=False)
        return
    screen = _screen(quiet=quiet)
    screen.print(render_result(manifest, seconds=time.perf_counter() - start))
    screen.print(f"wrote {' and '.join(map(str, job.written))}", soft_wrap=True)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        _errors().print(f"export-circuit: warning: {note}", markup=False)


def _print_plan(job: object, *, quiet: bool, as_json: bool) -> None:
    from exporter.cli.display import render_plan
    from exporter.job import Job, prepare

    assert isinstance(job, Job)
    plan = prepare(job)
    if not quiet:
        _print_notes(plan.notes)
    if as_json:
        typer.echo(json.dumps(plan.summary(), indent=1))
    else:
        _screen(quiet=quiet).print(render_plan(plan.summary()))


@app.command()
def tasks(
    model: Annotated[str, typer.Option(help="The model whose tokenizer reads the examples.")] = "bundled",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tasks, with an example prompt each.

    Example: [bold]export-circuit tasks[/bold]
    """
    from exporter.cli.display import render_tasks
    from exporter.data_check import require_tokenizer
    from exporter.loading import load_model
    from exporter.tasks import list_tasks

    rows = list_tasks(require_tokenizer(load_model(model)))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _screen().print(render_tasks(rows))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="model.onnx or its manifest, model.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an exported file is, and draw its circuit as a grid of layers by heads.

    Example: [bold]export-circuit inspect model.onnx[/bold]
    """
    from exporter.cli.display import render_inspection
    from exporter.cli.inspection import inspect_file

    found = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _screen().print(render_inspection(found))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An ONNX file that export-circuit wrote.")],
    model: Annotated[
        str | None, typer.Option(help="Where the dense model is now. Default: where it came from.")
    ] = None,
    task: Annotated[Path | None, typer.Option(help="Where the task's file is now. Default: where it was.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the exactness gate again on a file: hooked = rewritten = ONNX on held-out prompts.

    Example: [bold]export-circuit verify model.onnx[/bold]
    """
    from dataclasses import asdict

    from exporter.pipeline import reverify

    exactness = reverify(file, model=model, task=task)
    if as_json:
        typer.echo(json.dumps(asdict(exactness), indent=1))
        return
    _screen().print(
        f"{file} is exact on {exactness.prompts} prompts: hooked = rewritten to {exactness.hooked_vs_rewritten:.1e}, "
        f"rewritten = ONNX to {exactness.rewritten_vs_onnx:.1e}, allowed {exactness.limit:.1e}",
        soft_wrap=True,
    )


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the installation: versions, ONNX Runtime and its providers, the hub; say what mends what is missing.

    Example: [bold]export-circuit doctor[/bold]
    """
    from dataclasses import asdict

    from exporter.cli.display import render_checks
    from exporter.cli.doctor import diagnose
    from exporter.errors import MissingRuntimeError

    checks = diagnose()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        _screen().print(render_checks(checks))
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        raise MissingRuntimeError(f"missing: {', '.join(missing)}; the table says how to mend it")
