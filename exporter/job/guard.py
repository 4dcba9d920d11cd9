"""The guard of a job: fitted on the patching prompts, its limit set on the selection prompts, tried out on the file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from exporter.evidence.fitness import require_tokenizer
from exporter.evidence.guard import measure_guard
from exporter.evidence.guarded import GuardFigures
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.graph.scope import RESIDUALS, add_residuals
from exporter.job.gate import pick_provider
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope, fit_scope
from exporter.runtime.session import make_feeds, open_session


def plan_scope(plan: Plan, rewritten: CircuitModel, options: GraphOptions, *, rehearsed: bool) -> Scope | None:
    """The scope of a job with a guard, blank in a rehearsal. Raises InputError: there is nothing to fit it on.

    In reduced precision it is fitted on the residuals of such a file: what rounding adds to them is no distance.
    """
    if not plan.job.guard:
        return None
    blank, sets = Scope.blank(rewritten.W_E.shape[1]), (plan.data.patching, plan.data.selection)
    if rehearsed:
        return blank
    if options.precision == "fp32":
        return fit_scope(rewritten, *sets)
    with make_scratch() as folder:
        path = folder / "probe.onnx"
        export_onnx(rewritten, path, options, scope=blank)
        add_residuals(path)
        session = open_session(path, provider=pick_provider(options))

        def read(ids: Tensor, mask: Tensor | None) -> Tensor:
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            return torch.from_numpy(session.run([RESIDUALS], make_feeds(session, ids.numpy(), real.numpy(), {}))[0])

        return fit_scope(rewritten, *sets, read=read)


def try_guard(
    plan: Plan, rewritten: CircuitModel, path: Path, options: GraphOptions, scope: Scope | None
) -> GuardFigures | None:
    """How the file at `path` tells the task's prompts from others; None without a scope."""
    if scope is None:
        return None
    tokenizer, session = require_tokenizer(plan.model), open_session(path, provider=pick_provider(options))
    return measure_guard(session, scope, plan.data, tokenizer, n_tokens=len(rewritten.W_E))
