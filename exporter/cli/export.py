"""The main command: find a circuit, rebuild the model with it, write ONNX."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from exporter.cli import options as opts
from exporter.cli.arguments import read_gibibytes, read_names
from exporter.cli.screen import make_errors, make_screen
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.job.options import Job
    from exporter.search.rules import Budget


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What was typed. The fields stand in the order in which --help shows them."""

    # the ten that people need first
    task: opts.Task = None
    model: opts.Model = "auto"
    out: opts.Out = None
    bundle: opts.Bundle = None
    preset: opts.Preset = None
    min_accuracy: opts.MinAccuracy = None
    precision: opts.Precision = "fp32"
    dry_run: opts.DryRun = False
    force: opts.Force = False
    as_json: opts.ManifestAsJson = False

    # task and model
    revision: opts.Revision = None
    template: opts.TaskTemplate = None
    letters: opts.Letters = None
    seed: opts.Seed = 0
    patching_prompts: opts.PatchingPrompts = None
    selection_prompts: opts.SelectionPrompts = 250
    test_prompts: opts.TestPrompts = 500

    # the circuit
    alpha: opts.Alpha = None
    metric: opts.MetricName = "kl"
    circuit: opts.CircuitFile = None
    max_params: opts.MaxParams = None
    max_kl: opts.MaxKl = None
    max_latency_ms: opts.MaxLatency = None
    batch: opts.LatencyBatch = 1
    threads: opts.LatencyThreads = None
    heal: opts.HealKind = "distil"
    teacher: opts.TeacherKind = "dense"
    ablation: opts.AblationKind = None
    mean: opts.Mean = None
    align: opts.Align = None
    mlps: opts.Mlps = True

    # the exported file
    for_: opts.For = None
    report: opts.Report = False
    with_past: opts.WithPast = False
    logits: opts.Logits = "last"
    vocab: opts.Vocab = "full"
    int8_scales: opts.Int8Scales = None
    int8_weights: opts.Int8Weights = "uint8"
    target: opts.Target = "portable"
    external_data: opts.ExternalData = False
    guard: opts.Guard = False
    opset: opts.Opset = "20"

    # running
    memory_limit: opts.MemoryLimit = None
    device: opts.Device = "cpu"
    dtype: opts.Dtype = "float32"
    resume: opts.Resume = False
    evidence: opts.EvidenceKind = "basic"
    quiet: opts.Quiet = False
    debug: opts.Debug = False

    def make_job(self) -> Job:
        """The job that was asked for; raises UsageError for options that do not go together."""
        from exporter.job.options import Job, choose_ablation
        from exporter.tasks import SplitSizes

        assert self.task is not None, "checked before"
        budget = self._read_budget()
        sizes = SplitSizes(patching=self.patching_prompts, selection=self.selection_prompts, test=self.test_prompts)
        of_the_task = {"template": self.template, "letters": self.letters}
        return Job(
            task=self.task,
            out=self.out,
            model=self.model,
            revision=self.revision,
            preset=self.preset,
            alpha=self.alpha,
            metric=self.metric,
            budget=budget,
            heal=self.heal,
            teacher=self.teacher,
            ablation=choose_ablation(self.ablation, self.mean, self.align, searched=self.circuit is None),
            mlps=self.mlps,
            circuit=self.circuit,
            seed=self.seed,
            sizes=sizes,
            parameters={name: value for name, value in of_the_task.items() if value is not None},
            memory_limit=read_gibibytes(self.memory_limit),
            device=self.device,
            dtype=self.dtype,
            resume=self.resume,
            force=self.force,
            bundle=self.bundle,
            targets=read_names(self.for_),
            with_past=self.with_past,
            logits=self.logits,
            vocab=self.vocab,
            target=self.target,
            precision=self.precision,
            scales=self.int8_scales,
            weights=self.int8_weights,
            external_data=self.external_data,
            guard=self.guard,
            opset=int(self.opset),
            report=self.report,
        )

    def _read_budget(self) -> Budget | None:
        """The bounds that were given, or None; raises UsageError for what is none."""
        from exporter.search.rules import Budget

        bounds = (self.min_accuracy, self.max_kl, self.max_params, self.max_latency_ms)
        if self.max_latency_ms is None and (self.batch != 1 or self.threads is not None):
            raise UsageError(f"--{'batch' if self.batch != 1 else 'threads'} is for --max-latency-ms; leave it out")
        if all(bound is None for bound in bounds):
            return None
        return Budget(*bounds, self.batch, self.threads)


def _take_options(command: Callable[[typer.Context, ExportOptions], None]) -> Callable[..., None]:
    """The command with the fields of `ExportOptions` as its parameters, from which typer makes its options."""

    @wraps(command)
    def call(context: typer.Context, **values: Any) -> None:
        command(context, ExportOptions(**values))

    types = get_type_hints(ExportOptions, include_extras=True)
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
        for field in fields(ExportOptions)
    ]
    first = Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    call.__signature__ = Signature([first, *options])  # type: ignore[attr-defined]  # `inspect` looks there first
    return call


@_take_options
def export(context: typer.Context, given: ExportOptions) -> None:
    """Find the circuit of a task in a language model, rebuild the model with it, and export it to ONNX.

    Example: [bold]export-circuit --task acronym --out model.onnx[/bold]
    """
    has_output = given.out is not None or given.bundle is not None
    if context.invoked_subcommand is not None:
        if given.task is not None or has_output:
            raise UsageError(f"--task, --out and --bundle do not go with the command {context.invoked_subcommand!r}")
        return
    if given.task is None or not (has_output or given.dry_run):
        missing = "--task" if given.task is None else "--out or --bundle"
        raise UsageError(
            f"{missing} is missing; try: export-circuit --task acronym --out model.onnx (or: export-circuit --help)"
        )
    job = given.make_job()
    if given.dry_run:
        _rehearse(job, given)
    else:
        _run(job, given)


def _rehearse(job: Job, given: ExportOptions) -> None:
    """Check all stages of a job, and print what it would do."""
    from exporter.cli.display import render_plan
    from exporter.job.run import check_job, require_search

    if given.evidence == "full":
        require_search(job)
    plan = check_job(job)
    _warn([] if given.quiet else plan.notes)
    if given.as_json:
        typer.echo(json.dumps(plan.summary(), indent=1))
    else:
        make_screen(quiet=given.quiet).print(render_plan(plan.summary()))


def _run(job: Job, given: ExportOptions) -> None:
    """Do a job, with its progress and its result on the screen."""
    from exporter.cli.display import render_result
    from exporter.cli.progress import JobProgress
    from exporter.job.run import run_job
    from exporter.search.ranks import read_place
    from exporter.studies.controls import run_controls

    errors, start = make_errors(), time.perf_counter()
    said: set[str] = set()

    def warn_once(notes: Sequence[str]) -> None:
        _warn([] if given.quiet else [note for note in notes if note not in said])
        said.update(notes)

    silent = given.quiet or given.as_json or read_place()[0] > 0
    with JobProgress(errors, disable=silent or not errors.is_terminal, metric=job.metric) as progress:
        manifest = run_job(
            job,
            on_stage=progress.on_stage,
            on_plan=lambda plan: warn_once(plan.notes),
            on_decision=progress.on_decision,
            on_size=progress.on_size,
            study=run_controls if given.evidence == "full" else None,
        )
    if manifest is None:  # a rank that only helped
        return
    warn_once(manifest.notes)
    if given.as_json:
        typer.echo(manifest.to_json(), nl=False)
        return
    screen = make_screen(quiet=given.quiet)
    screen.print(render_result(manifest, seconds=time.perf_counter() - start))
    screen.say(f"wrote {' and '.join(map(str, job.written))}")


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        make_errors().say(f"export-circuit: warning: {note}")
