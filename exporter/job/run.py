"""The main job: from a model and a task to an exact ONNX file and its manifest.

Each stage is one call of the library; what is written appears all at once at the end, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch

from exporter.checks import require_type
from exporter.circuit import Decision, decision_to_json
from exporter.errors import MissingRuntimeError, UsageError
from exporter.evidence.controls import Controls
from exporter.job.build import Found, build_file
from exporter.job.clock import Clock
from exporter.job.options import Job
from exporter.job.plan import Plan, prepare
from exporter.job.rehearsal import check_outputs, check_search, rehearse
from exporter.job.timing import require_latency, time_network
from exporter.outputs.bundle import open_outputs
from exporter.outputs.manifest import Manifest
from exporter.runtime.session import has_provider, import_onnxruntime
from exporter.search.checkpoints import read_prior, save_checkpoint
from exporter.search.find import search_surgery
from exporter.search.journal import Journal, journal_path
from exporter.search.problem import OnDecision, OnSize
from exporter.search.ranks import SOLO, Ranks, join_ranks

Study = Callable[[Plan, Found, Clock], Controls]
"""More evidence about a job's circuit, gathered before its manifest is written; each part is a stage of the clock."""


def run_job(
    job: Job,
    *,
    on_stage: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_decision: OnDecision | None = None,
    on_size: OnSize | None = None,
    study: Study | None = None,
) -> Manifest | None:
    """Do the job and return its manifest. Writes `out` with its manifest, and `bundle`; all of them or none.

    study: what fills the manifest's `controls`, such as `exporter.studies.controls.run_controls`.
    Under torchrun every rank calls this; ranks other than 0 only take part in the search, and return None. Raises
    ExactnessError: hooked, rewritten and exported model disagree; InputError: a file cannot be read or written;
    UsageError: no output; MissingRuntimeError: no ONNX Runtime or device; LostRankError: another process is gone.
    """
    require_type("job", job, Job)
    _require_outputs(job, study)
    _require_runtime(job)
    clock = Clock(on_stage)
    with join_ranks(job.device) as ranks:
        if not ranks.leads:
            plan = prepare(job)
            prior = cast("dict[str, Any]", ranks.share(None))
            if plan.circuit is None:
                search_plan(plan, prior, ranks)
            return None
        with open_outputs(job.out, job.bundle, force=job.force, report=job.report, targets=job.targets) as outputs:
            with clock.stage("load"):
                plan = prepare(job)
            if on_plan is not None:
                on_plan(plan)
            with Journal(journal_path(job.written[0]), plan.search_key, resume=job.resume) as journal:
                prior = read_prior(journal, gradual=job.is_gradual)
                if plan.circuit is None:
                    with clock.stage("rehearse"):
                        rehearse(plan, build_file)
                with clock.stage("search"):
                    ranks.share(prior)
                    found = _find(plan, journal, prior, ranks, on_decision, on_size)
                plan = plan.to_float32()
                manifest = build_file(plan, found, outputs.model_path, plan.options, clock)
                require_latency(plan, outputs.model_path)
                manifest = manifest if study is None else _add_controls(manifest, study(plan, found, clock), clock)
                readings, strict = plan.data.readings, plan.circuit is not None  # a search is not thrown away
                manifest = outputs.write(manifest, plan.model, example=plan.example, readings=readings, strict=strict)
                outputs.commit()
    return manifest


def _add_controls(manifest: Manifest, controls: Controls, clock: Clock) -> Manifest:
    return manifest.model_copy(update={"controls": controls, "seconds": dict(clock.seconds)})


def _require_outputs(job: Job, study: Study | None) -> None:
    if not job.written:
        raise UsageError("the job has neither out nor bundle; give one of them")
    if study is not None:
        require_search(job)


def require_search(job: Job) -> None:
    """Raise UsageError for a job without a search, which a study cannot repeat."""
    if job.circuit is not None:
        raise UsageError("--evidence full repeats the search, and --circuit needs none; leave one of them out")


def check_job(job: Job) -> Plan:
    """Check a job as a dry run: raises as `run_job` would, searches nothing, and leaves no file behind.

    The job may still fail for reasons that depend on the searched circuit or on all prompts: a file of more than 2 GB,
    a reduced precision that answers otherwise, logits that differ, a full disk.
    """
    _require_runtime(job)
    check_outputs(job)
    plan = prepare(job)
    check_search(plan)
    rehearse(plan, build_file)
    return plan


def _require_runtime(job: Job) -> None:
    """Raise MissingRuntimeError without ONNX Runtime or the device that the job asks for."""
    import_onnxruntime()
    if job.device == "cuda" and not torch.cuda.is_available():
        raise MissingRuntimeError(
            "no CUDA device that torch can use; leave --device out, or run `export-circuit doctor`"
        )
    if job.precision == "bf16" and not has_provider("cuda"):
        raise MissingRuntimeError(
            "bf16 runs on CUDA alone, and a file that cannot be run is not written: install export-circuit[gpu] on a "
            "machine with a GPU, or take --precision fp16"
        )


def _find(
    plan: Plan,
    journal: Journal,
    prior: Mapping[str, Any],
    ranks: Ranks,
    on_decision: OnDecision | None,
    on_size: OnSize | None,
) -> Found:
    """The circuit of the circuit file, or of a search that goes on from `prior` and tells the journal of its steps."""
    if plan.circuit is not None:
        return Found(plan.circuit, plan.record, plan.surgery)
    n_before = len(journal.entries)

    def note(decision: Decision, done: int, total: int) -> None:
        if done > n_before:
            journal.add(decision_to_json(decision))
        if on_decision is not None:
            on_decision(decision, done, total)

    return search_plan(
        plan, prior, ranks, on_decision=note, on_size=on_size, on_checkpoint=partial(save_checkpoint, journal)
    )


def search_plan(plan: Plan, prior: Mapping[str, Any], ranks: Ranks = SOLO, **options: Any) -> Found:
    """The search of a job: `prior` is what an interrupted run has left, `options` are others of `search_surgery`."""
    job, data = plan.job, plan.data
    surgery, record = search_surgery(
        plan.model,
        data.patching,
        data.selection,
        rule=plan.rule,
        metric=job.metric,
        ablation=plan.ablation,
        mlps=job.mlps,
        memory_limit=job.memory_limit,
        ranks=ranks,
        heal=job.heal,
        teacher=job.teacher,
        seed=job.seed,
        time=partial(time_network, plan),
        **prior,
        **options,
    )
    # of a search in less than float32, the means are not those of the model that is exported
    return Found(surgery.circuit, record, surgery if job.dtype == "float32" else None)
