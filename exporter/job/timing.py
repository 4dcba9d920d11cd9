"""How long a call takes of what a job exports: as the search asks of its networks, and of the file at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from exporter.errors import InputError
from exporter.evidence.footprint import Memory, compare_memory
from exporter.evidence.latency import Latency, compare_latency, time_call
from exporter.files.scratch import make_scratch
from exporter.graph.export import count_bytes, export_onnx, fits_one_file
from exporter.graph.options import GraphOptions
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.rewrite.folds import fold_model
from exporter.search.latency import SLACK
from exporter.search.rules import DEPLOY

LATENCY_BATCHES = (1, 32)
LATENCY_BLOCKS = 7


def time_network(plan: Plan, network: CircuitModel) -> float:
    """Milliseconds of a call of a network as the job would export it, on patching prompts: see `Budget`."""
    with make_scratch() as folder:
        path = folder / "network.onnx"
        scope = Scope.blank(network.W_E.shape[1]) if plan.job.guard else None  # takes as long as a fitted one
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


def measure_file(
    plan: Plan, path: Path, options: GraphOptions, *, rehearsed: bool
) -> tuple[int, list[Latency], list[Memory]]:
    """The size in bytes of the exported dense model (fp32), its latency and its memory against the circuit's by batch.

    Memory is measured for a report. In a rehearsal the circuit is called once, and compared with itself.
    """
    dense, prompts = plan.model.dense, plan.data.test
    if rehearsed:
        return 0, [time_call(path, prompts.input_ids, prompts.mask)], []
    with make_scratch() as folder:
        reference = folder / "dense.onnx"
        large = not fits_one_file(count_bytes(dense))
        export_onnx(dense, reference, GraphOptions(form=options.form, external_data=large))
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
        latency: list[Latency] = []
        memory: list[Memory] = []
        for batch in LATENCY_BATCHES:
            rows = torch.arange(batch) % len(prompts)
            some = prompts.input_ids[rows], None if prompts.mask is None else prompts.mask[rows]
            latency.append(compare_latency(reference, path, *some, blocks=LATENCY_BLOCKS))
            memory += [compare_memory(reference, path, *some)] if plan.job.report else []
    return n_bytes, latency, memory
