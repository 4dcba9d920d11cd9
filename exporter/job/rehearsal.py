"""Rehearse a job: run all stages after the search, on a few prompts, before the search begins.

A search takes minutes to days, and most failures of later stages do not depend on its circuit: options that exclude
each other, prompts that a graph does not take, a tokenizer that cannot be written, a full disk. So these stages run
first, with the job's own options, on a small circuit (a head and an MLP in the first and in the last layer) and a few
prompts of each set, the longest and the shortest among them, into a temporary folder.

A rehearsal cannot detect failures that depend on the searched circuit: a file above 2 GB, a reduced precision that
answers otherwise, logits that differ.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from exporter.circuit import Circuit, Head, SearchRecord
from exporter.errors import InputError
from exporter.files import OutputSet
from exporter.files.scratch import make_scratch
from exporter.graph.export import count_bytes, fits_one_file, require_one_file
from exporter.graph.options import GraphOptions
from exporter.job.build import Found
from exporter.job.options import Job
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.outputs.bundle import is_bundle, make_output_set, open_outputs
from exporter.outputs.folders import OutputFolder
from exporter.outputs.manifest import Manifest
from exporter.search.checkpoints import read_prior
from exporter.search.journal import Journal, journal_path
from exporter.search.memory import plan_learning, plan_memory
from exporter.search.ranks import Ranks, read_place
from exporter.tasks import TaskData
from exporter.tasks.dataset import Dataset

Build = Callable[[Plan, Found, Path, GraphOptions], Manifest]
"""The stages after the search (`exporter.job.build`): a plan, a circuit, where to write, and how."""

_MOST_PROMPTS = 4  # of each set


def check_outputs(job: Job) -> None:
    """Raise InputError for outputs that cannot be written as the job asks; writes nothing."""
    sets: list[OutputSet] = []
    if job.out is not None:
        sets.append(make_output_set(job.out, force=job.force, report=job.report))
    if job.bundle is not None:
        sets.append(OutputFolder(job.bundle, is_replaceable=is_bundle, force=job.force))
    for output in sets:
        output.check()


def check_search(plan: Plan) -> None:
    """Raise InputError for a journal of another search or a damaged one, too little memory, too few prompts to share.

    Raises UsageError for variables of torchrun that do not fit. Memory on CUDA is checked only against `memory_limit`.
    """
    job, selection = plan.job, plan.data.selection
    if job.written:
        journal = Journal(journal_path(job.written[0]), plan.search_key, resume=job.resume)
        journal.check()
        read_prior(journal, gradual=job.is_gradual)
    if plan.circuit is not None:
        return
    rank, size = read_place()
    share = Ranks(rank, size).take_share(selection)
    if plan.job.is_gradual:
        patching = plan.data.patching
        plan_learning(plan.model.dense, 1, patching.length, job.memory_limit, n_steps=patching.n_steps)
        return
    if job.device == "cpu" or job.memory_limit is not None:
        plan_memory(plan.model.dense, len(share), share.length, job.memory_limit, n_steps=selection.n_steps)


def rehearse(plan: Plan, build: Build) -> None:
    """Run every stage after the search on a few prompts; a circuit file's circuit is used as it is.

    Raises InputError: a stage fails, or too little disk space for the outputs or temporary files.
    """
    job, dense, options = plan.job, plan.model.dense, plan.options
    if plan.circuit is None:
        _require_size(dense, job)
    few = replace(plan, data=_take_few(plan.data))
    with make_scratch() as folder:
        out = None if job.out is None else folder / "file" / job.out.name
        bundle = None if job.bundle is None else folder / "folder" / job.bundle.name
        if out is None and bundle is None:
            out = folder / "file" / "model.onnx"
        for path in (out, bundle):
            if path is not None:
                path.parent.mkdir()
        with open_outputs(out, bundle, force=False, report=job.report, targets=job.targets) as outputs:
            manifest = build(few, _take_circuit(plan), outputs.model_path, options)
            outputs.write(manifest, plan.model, example=plan.example, readings=plan.data.readings)
            for target, path in ((job.out, out), (job.bundle, bundle)):
                if target is not None and path is not None:
                    # a search may remove every component, so their float32 weights do not count
                    spare = 0 if plan.circuit is not None else 4 * manifest.size.circuit
                    _require_room(target, _weigh(path.parent) - spare)
    _require_scratch_room(count_bytes(dense))


def _take_circuit(plan: Plan) -> Found:
    """The circuit of the job's circuit file, or a small one to rehearse with."""
    if plan.circuit is not None:
        return Found(plan.circuit, plan.record, plan.surgery)
    alpha = None if plan.job.is_gradual else plan.alpha
    return Found(pick_circuit(plan), SearchRecord(alpha=alpha, order="paper", metric=plan.job.metric))


def pick_circuit(plan: Plan) -> Circuit:
    """A small circuit with every kind of sublayer: a head and an MLP in the first and in the last layer.

    An MLP is left out where it would exceed the size limit of a single file: the search may remove that MLP.
    """
    job, info, dense = plan.job, plan.model_info, plan.model.dense
    ends = {0, info.n_layers - 1}
    room, mlps = _count_least(dense, job), []
    sizes = {s.layer: sum(t.nbytes for t in s.parameters()) for s in dense.sublayers() if s.kind == "mlp"}
    for layer in sorted(ends & set(sizes)):
        if job.external_data or not job.mlps or fits_one_file(room + sizes[layer]):
            mlps.append(layer)
            room += sizes[layer]
    return Circuit(
        heads=tuple(Head(layer, layer % info.n_heads) for layer in sorted(ends)),
        mlps=tuple(mlps),
        ablation=plan.ablation,
    )


def _take_few(data: TaskData) -> TaskData:
    ood = {name: _take_ends(dataset) for name, dataset in data.ood.items()}
    return replace(
        data,
        patching=_take_ends(data.patching),
        selection=_take_ends(data.selection),
        test=_take_ends(data.test),
        ood=ood,
    )


def _take_ends(dataset: Dataset) -> Dataset:
    """A few prompts, padded as in the whole set: the first ones, the longest and the shortest."""
    lengths = torch.ones(len(dataset)) if dataset.mask is None else dataset.mask.sum(dim=1)  # (prompt,)
    chosen = {int(lengths.argmax()), int(lengths.argmin()), *range(min(len(dataset), _MOST_PROMPTS - 2))}
    return dataset.take(torch.tensor(sorted(chosen)))


def _count_least(dense: CircuitModel, job: Job) -> int:
    """A lower bound on the file's bytes: W_E, W_U unless tied, and the MLPs where they are no candidates."""
    kept = [dense.W_E, *([] if dense.tied else [dense.W_U])]
    mlps = [] if job.mlps else [t for s in dense.sublayers() if s.kind == "mlp" for t in s.parameters()]
    width = 4 / dense.W_E.element_size()  # what is exported is float32
    return int(width * sum(tensor.nbytes for tensor in (*kept, *mlps)))


def _require_size(dense: CircuitModel, job: Job) -> None:
    if not job.external_data:
        require_one_file(_count_least(dense, job))


def _weigh(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _require_room(target: Path, n_bytes: int) -> None:
    """Raise InputError where the disk of `target` has less than `n_bytes` free."""
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise InputError(
            f"no space left to write {target}: it takes {n_bytes / 1e6:.0f} MB at least, and {free / 1e6:.0f} are "
            "free; free some, or write elsewhere"
        )


def _require_scratch_room(n_bytes: int) -> None:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise InputError(
            f"the dense model, which the circuit is timed against, takes {n_bytes / 1e6:.0f} MB in {folder}, and "
            f"{free / 1e6:.0f} are free; free some, or set TMPDIR to another folder"
        )
