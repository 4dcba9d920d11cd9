"""How long a call takes of what a job exports: as the search asks of its networks, and of the file at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from exporter.errors import InputError
from exporter.evidence.latency import compare_latency
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx
from exporter.job.guard import plan_scope
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.search.latency import SLACK
from exporter.search.rules import DEPLOY

LATENCY_BLOCKS = 7


def time_network(plan: Plan, network: CircuitModel) -> float:
    """Milliseconds of a call of a network as the job would export it, on patching prompts: see `Budget`."""
    with make_scratch() as folder:
        path = folder / "network.onnx"
        scope = plan_scope(plan, network, rehearsed=True)  # a blank one takes as long
        export_onnx(fold_model(network), path, plan.options, scope=scope)
        return time_file(plan, path)


def time_file(plan: Plan, path: Path) -> float:
    """The same of a file that is there."""
    budget, prompts = plan.job.budget or DEPLOY, plan.data.patching
    rows = torch.arange(budget.batch) % len(prompts)
    mask = None if prompts.mask is None else prompts.mask[rows]
    timed = compare_latency(path, path, prompts.input_ids[rows], mask, blocks=LATENCY_BLOCKS, threads=budget.threads)
    return 1e3 * timed.circuit


def require_latency(plan: Plan, path: Path) -> None:
    """Raise InputError where a written file is slower than the job's budget by more than a tenth."""
    most = None if plan.job.budget is None else plan.job.budget.max_latency_ms
    if plan.circuit is not None or most is None:
        return
    if (found := time_file(plan, path)) > (1 + SLACK) * most:
        raise InputError(
            f"the file takes {found:.3g} ms a call where at most {most:g} were allowed; no file was left: run it again "
            "on a quiet machine, or allow more"
        )
