"""The guard of a job: fitted on the patching prompts, its limit set on the selection prompts, tried out on the file."""

from __future__ import annotations

from pathlib import Path

import torch

from exporter.evidence.fitness import require_tokenizer
from exporter.evidence.guard import GuardFigures, measure_guard
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx
from exporter.graph.guards import SCOPE_DISTANCE
from exporter.graph.options import GraphOptions
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope, fit_scope, take_aside
from exporter.runtime.session import open_session, run_guards


def plan_scope(plan: Plan, rewritten: CircuitModel, *, rehearsed: bool) -> Scope | None:
    """The scope of a job with a guard, blank in a rehearsal. Raises InputError: there is nothing to fit it on."""
    if not plan.job.guard:
        return None
    if rehearsed:
        return Scope.blank(rewritten.W_E.shape[1])
    return fit_scope(rewritten, plan.data.patching, plan.data.selection)


def settle_scope(
    plan: Plan, rewritten: CircuitModel, options: GraphOptions, scope: Scope | None, *, provider: str
) -> Scope | None:
    """The scope with a limit that the file's own distances keep: in reduced precision they are a little larger."""
    if scope is None or options.precision == "fp32":
        return scope
    with make_scratch() as folder:
        path = folder / "guard.onnx"
        export_onnx(rewritten, path, options, scope=scope)
        session = open_session(path, provider=provider)
        chunks = take_aside(plan.data.selection, plan.data.patching)
        found = [run_guards(session, ids.numpy(), None if mask is None else mask.numpy()) for ids, mask in chunks]
    return scope.widen(torch.cat([torch.from_numpy(outputs[SCOPE_DISTANCE]) for outputs in found]))


def try_guard(
    plan: Plan, rewritten: CircuitModel, path: Path, scope: Scope | None, *, provider: str
) -> GuardFigures | None:
    """How the file at `path` tells the task's prompts from others; None without a scope."""
    if scope is None:
        return None
    tokenizer, session = require_tokenizer(plan.model), open_session(path, provider=provider)
    return measure_guard(session, scope, plan.data, tokenizer, n_tokens=len(rewritten.W_E))
