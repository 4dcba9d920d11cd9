"""`export-circuit sweep`: the same job with many thresholds or budgets, on several seeds, and its curves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group, RenderableType

from exporter.cli import options as opts
from exporter.cli import study_options as study
from exporter.cli.screen import Sheet, make_errors, make_screen
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.job.plan import Plan
    from exporter.studies.points import Point
    from exporter.studies.run import SweepResult
    from exporter.studies.summary import Spread
    from exporter.studies.sweep import Sweep

SHOWN = ("accuracy", "kl", "logit_difference")  # measures of CPR and CMD that the table shows; the file has all


def sweep(
    task: study.SweptTask,
    model: opts.Model = "auto",
    alphas: study.Alphas = None,
    budgets: study.Budgets = None,
    seeds: study.SweepSeeds = 5,
    ablation: study.SweptAblations = "mean",
    mlps: study.SweptMlps = "searched",
    heal: study.SweepHeal = "distil",
    template: opts.TaskTemplate = None,
    letters: opts.Letters = None,
    patching_prompts: opts.PatchingPrompts = None,
    selection_prompts: opts.SelectionPrompts = 250,
    test_prompts: opts.TestPrompts = 500,
    out: study.SweepOut = None,
    workers: study.Workers = None,
    resume: study.ResumeSweep = False,
    force: study.ForceSweep = False,
    dry_run: opts.DryRun = False,
    as_json: study.SweepAsJson = False,
) -> None:
    """Search with many thresholds (or budgets) on several seeds: one circuit each, a table, and the paper's curves.

    Example: [bold]export-circuit sweep --task ioi --ablation mean,zero --mlps both --out sweep.json[/bold]
    """
    from exporter.studies.sweep import MLPS, Sweep, read_words
    from exporter.tasks import SplitSizes

    given = Sweep(
        task=task,
        model=model,
        seeds=seeds,
        ablations=read_words("--ablation", ablation, ("mean", "zero")),
        mlps=MLPS[mlps],
        heal=heal,
        sizes=SplitSizes(patching=patching_prompts, selection=selection_prompts, test=test_prompts),
        parameters={name: v for name, v in (("template", template), ("letters", letters)) if v is not None},
        force=force,
        **_read_rules(alphas, budgets),
    )
    _start(given, out, dry_run=dry_run, workers=workers, resume=resume, as_json=as_json)


def _read_rules(alphas: str | None, budgets: str | None) -> dict[str, Any]:
    from exporter.studies.sweep import PAPER_ALPHAS, read_budgets, read_numbers

    if alphas is not None and budgets is not None:
        raise UsageError("a sweep is over --alphas or over --budgets; leave one of them out")
    if budgets is not None:
        return {"budgets": read_budgets("--budgets", budgets)}
    return {"alphas": PAPER_ALPHAS if alphas is None else read_numbers("--alphas", alphas)}


def _start(sweep: Sweep, out: Path | None, *, dry_run: bool, workers: int | None, resume: bool, as_json: bool) -> None:
    """Run it, or say what it would do."""
    from exporter.cli.progress import JobProgress
    from exporter.studies.run import check_sweep, run_sweep

    screen, errors = make_screen(), make_errors()

    def warn(plan: Plan) -> None:
        errors.say(*(f"export-circuit: warning: {note}" for note in plan.notes))

    if dry_run:
        warn(check_sweep(sweep, out))
        rules = f"{len(sweep.rules)} {'alphas' if sweep.alphas else 'budgets'} x {sweep.seeds} seeds"
        kinds = f"{len(sweep.ablations)} ablations x {len(sweep.mlps)} treatments of MLPs"
        screen.say(f"{len(sweep.jobs())} points: {rules} x {kinds}")
        return
    if out is None:
        raise UsageError("--out is missing; try: export-circuit sweep --task acronym --out sweep.json")
    with JobProgress(errors, disable=as_json or not errors.is_terminal) as progress:
        result = run_sweep(
            sweep, out, workers=workers or count_cores(), resume=resume, on_plan=warn, on_point=progress.on_point
        )
    if as_json:
        typer.echo(result.to_json(), nl=False)
        return
    screen.print(render_sweep(result))
    screen.say(*_say_next(sweep, result, out))


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render_sweep(result: SweepResult) -> RenderableType:
    """The mean over seeds for each alpha or budget, and CPR and CMD."""
    from exporter.studies.summary import average_points

    table = Sheet(title=f"{result.task['name']} on {result.model['name']}: mean over seeds, +- standard deviation")
    for column in ("ablation", "MLPs", "alpha or budget", "heads", "MLPs kept", "size", "test accuracy", "test KL"):
        table.add_column(column, justify="left" if column in ("ablation", "MLPs") else "right")
    for row in average_points(result.points):
        table.add_row(
            row.ablation,
            row.mlps,
            row.budget if row.alpha is None else f"{row.alpha:g}",
            _show(row.heads, ".1f"),
            _show(row.mlps_kept, ".1f"),
            _show(row.size, ".1%"),
            _show(row.accuracy, ".1%"),
            _show(row.kl, ".3f"),
        )
    areas = Sheet("ablation", "MLPs", "measure", "CPR", "CMD", title="Areas of the faithfulness curve (docs/sweeps.md)")
    for area in (a for a in result.areas if a["metric"] in SHOWN):
        figures = [f"{area[name]:.3f} +- {area[f'{name}_std']:.3f}" for name in ("cpr", "cmd")]
        areas.add_row(area["ablation"], area["mlps"], area["metric"], *figures)
    return Group(table, areas)


def _show(spread: Spread, form: str) -> str:
    return f"{spread.mean:{form}} +- {spread.std:{form}}"


def _say_next(sweep: Sweep, result: SweepResult, out: Path) -> list[str]:
    """What was written, and the command that exports a point."""
    written = ", ".join(str(out.with_suffix(suffix)) for suffix in (".json", ".csv", ".svg", ".png"))
    point = result.points[0]
    if point.record.learning is not None:
        return [f"wrote {written}", f"a point is made again by its command; point 0: {point.command}"]
    words = write_export(sweep, point, out)
    return [f"wrote {written}", f"export a point, such as 0 (with its own --seed): {words}"]


def write_export(sweep: Sweep, point: Point, out: Path) -> str:
    """The command that exports a point's circuit without a search."""
    from exporter.job.command import write_command
    from exporter.job.options import Job

    job = Job(
        task=sweep.task,
        model=sweep.model,
        out=Path("model.onnx"),
        circuit=Path(f"{out}#{point.number}"),
        seed=point.settings["seed"],
        sizes=sweep.sizes,
        parameters=sweep.parameters,
    )
    return write_command(job)
