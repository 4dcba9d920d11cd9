"""The main job: from a model and a task to an exact ONNX file and its manifest.

Each stage is one call of the library; what is written appears all at once at the end, or not at all.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from exporter.bundle.outputs import open_outputs
from exporter.circuit import Circuit, Decision
from exporter.circuit_model import CircuitModel
from exporter.data_check import describe_doubt, require_tokenizer
from exporter.dataset import Dataset
from exporter.errors import InputError, MissingRuntimeError
from exporter.evaluate import evaluate_circuit
from exporter.files import recover
from exporter.graph_options import Form, GraphOptions
from exporter.job import Job, Plan, hash_sets, prepare
from exporter.loading import LanguageModel
from exporter.manifest import ExportInfo, Manifest, Origin, Size, collect_versions, hash_file
from exporter.means import compute_replacements
from exporter.measure import Latency, compare_latency
from exporter.onnx_export import export_onnx
from exporter.reference import load_dense
from exporter.rewrite import fold_model, rewrite_model
from exporter.runtime import EXAMPLES_KEY, has_provider, import_onnxruntime, open_session
from exporter.search.engine import OnDecision, find_circuit
from exporter.search.journal import Journal, journal_path
from exporter.search.ranks import Ranks, join_ranks
from exporter.served import Served, evaluate_file, require_precision
from exporter.slicing import slice_model
from exporter.tasks import (
    TaskData,
    is_file_task,
    rebuild_task,
)
from exporter.verify import Exactness, verify_export

LATENCY_BATCHES = (1, 32)
N_EXAMPLES = 8  # that the file holds in its metadata, out of some more
_EXAMPLES_OF = 64
LATENCY_BLOCKS = 7


class _Clock:
    """Says which stage has begun, and keeps how long each took."""

    def __init__(self, on_stage: Callable[[str], None] | None) -> None:
        self.on_stage = on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.on_stage is not None:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def run_job(
    job: Job,
    *,
    on_stage: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_decision: OnDecision | None = None,
) -> Manifest | None:
    """Do the job and return its manifest; leaves `out` with its manifest and `bundle`, or nothing at all.

    Under torchrun every rank calls this; all but rank 0 only help to search, and return None. Raises
    ExactnessError when hooked, rewritten and exported model disagree, InputError for what cannot be read
    or written, MissingRuntimeError without ONNX Runtime or the device.
    """
    assert job.written
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
    clock = _Clock(on_stage)
    with join_ranks(job.device) as ranks:
        if not ranks.leads:
            plan = prepare(job)
            decided = cast("list[Decision]", ranks.share(None))
            if plan.circuit is None:
                _search(plan, decided, ranks, None)
            return None
        with open_outputs(job.out, job.bundle, suffixes=job.suffixes, force=job.force) as outputs:
            with clock.stage("load"):
                plan = prepare(job)
            if on_plan is not None:
                on_plan(plan)
            with Journal(journal_path(job.written[0]), plan.search_key, resume=job.resume) as journal:
                with clock.stage("search"):
                    ranks.share(journal.decisions)
                    circuit = plan.circuit or _search_with_journal(plan, journal, ranks, on_decision)
                plan = plan.to_float32()
                manifest = _build(plan, circuit, outputs.model_path, clock)
                manifest = outputs.write(manifest, plan.model, example=plan.example)
                outputs.commit()
    return manifest


def _search_with_journal(plan: Plan, journal: Journal, ranks: Ranks, on_decision: OnDecision | None) -> Circuit:
    """Search from where the journal is, and write every new decision into it."""
    known = len(journal.decisions)

    def note(decision: Decision, done: int, total: int) -> None:
        if done > known:
            journal.add(decision)
        if on_decision is not None:
            on_decision(decision, done, total)

    return _search(plan, journal.decisions[:known], ranks, note)


def _search(plan: Plan, decided: Sequence[Decision], ranks: Ranks, on_decision: OnDecision | None) -> Circuit:
    job, data = plan.job, plan.data
    return find_circuit(
        plan.model,
        data.patching,
        data.selection,
        alpha=plan.alpha,
        ablation=job.ablation or "mean",
        mean=job.mean or "position",
        align=plan.align,
        mlps=job.mlps,
        memory_limit=job.memory_limit,
        prior=decided,
        ranks=ranks,
        on_decision=on_decision,
    )


def _build(plan: Plan, circuit: Circuit, path: Path, clock: _Clock) -> Manifest:
    """Rewrite, export to `path`, verify, evaluate, measure."""
    model, data = plan.model, plan.data
    with clock.stage("rewrite"):
        means = compute_replacements(
            model.dense, data.patching, ablation=circuit.ablation, mean=circuit.mean, align=circuit.align
        )
        sliced = slice_model(model.dense, circuit, means)
        rewritten = fold_model(sliced)
    options = plan.options
    with clock.stage("export"):
        origin = Origin(task=plan.task_info, model=plan.model_info, circuit=circuit, options=options)
        metadata = {**origin.to_metadata(), EXAMPLES_KEY: _give_examples(rewritten, data.test, options)}
        description = export_onnx(rewritten, path, options, metadata=metadata)
    with clock.stage("verify"):
        exactness, served = _check(model, circuit, rewritten, path, options, data)
    with clock.stage("evaluate"):
        sets = {"test": data.test, **data.ood}
        figures = {
            name: evaluate_circuit(model.dense.answer_logits, rewritten.answer_logits, prompts)
            for name, prompts in sets.items()
        }
    # a user's own task was refused or doubted before the search; of ours it is a finding
    failing = describe_doubt(data.task, model, data.test, figures["test"].dense)
    doubts = () if is_file_task(plan.job.task) else failing
    with clock.stage("measure"):
        dense_bytes, latency = _measure_dense(model.dense, path, data, plan.form)
    return Manifest(
        schema=1,
        task=plan.task_info,
        model=plan.model_info,
        circuit=circuit.to_json(),
        alpha_sweep=plan.alpha_sweep,
        size=_measure_size(model.dense, sliced),
        test=figures.pop("test"),
        ood=figures,
        exactness=exactness,
        export=ExportInfo.of(options, served),
        onnx=description,
        latency=latency,
        dense_onnx_bytes=dense_bytes,
        files={file.name: hash_file(file) for file in (path, path.with_suffix(".onnx.data")) if file.exists()},
        seconds=clock.seconds,
        versions=collect_versions(),
        notes=[*plan.notes, *doubts],
    )


def _check(
    model: LanguageModel,
    circuit: Circuit,
    rewritten: CircuitModel,
    path: Path,
    options: GraphOptions,
    data: TaskData,
) -> tuple[Exactness, Served]:
    """Exactness, of the same graph in fp32 where the file is in reduced precision, and the file's own figures."""
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as folder:
        exact = path
        if options.precision != "fp32":
            exact = Path(folder) / path.name
            export_onnx(rewritten, exact, replace(options, precision="fp32", scales="tensor"))
        exactness = verify_export(model, circuit, rewritten, exact, patching=data.patching, prompts=data.test)
    is_half = options.precision in ("fp16", "bf16")  # which is for CUDA, and fp16 can be run without
    provider = "cuda" if is_half and has_provider("cuda") else "cpu"
    served = evaluate_file(open_session(path, provider=provider), rewritten, data.test)
    require_precision(served, options)
    return exactness, served


def _give_examples(rewritten: CircuitModel, prompts: Dataset, options: GraphOptions) -> str:
    """Some prompts and the circuit's answers, for whoever has the file alone: see `EXAMPLES_KEY`.

    Those that it is surest of: no rounding changes their answers, in no precision and on no device.
    """
    some = prompts[:_EXAMPLES_OF]
    logits = rewritten.next_token_logits(some.input_ids, some.mask)  # (prompt, vocab)
    tokens = torch.tensor(options.answer_ids) if options.answer_ids else torch.arange(logits.shape[1])
    best = logits[:, tokens].topk(min(2, len(tokens)))  # (prompt, 2)
    sure = (best.values[:, 0] - best.values[:, -1]).topk(min(N_EXAMPLES, len(some))).indices.sort().values
    mask = None if some.mask is None else some.mask[sure].long().tolist()
    answers = tokens[best.indices[sure, 0]]
    return json.dumps({"input_ids": some.input_ids[sure].tolist(), "attention_mask": mask, "answers": answers.tolist()})


def _measure_size(dense: CircuitModel, sliced: CircuitModel) -> Size:
    before, after = dense.count_parameters(), sliced.count_parameters()
    return Size(dense=before, circuit=after, constants=sliced.count_constants(), reduction=1 - after / before)


def _measure_dense(dense: CircuitModel, path: Path, data: TaskData, form: Form) -> tuple[int, list[Latency]]:
    """The dense model, exported the same way: the bytes of its file, and its latency against the circuit's."""
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as folder:
        dense_path = Path(folder) / "dense.onnx"
        export_onnx(dense, dense_path, GraphOptions(form=form))
        prompts = data.test.input_ids
        batches = [prompts.repeat(-(-batch // len(prompts)), 1)[:batch] for batch in LATENCY_BATCHES]
        return dense_path.stat().st_size, [
            compare_latency(dense_path, path, batch, blocks=LATENCY_BLOCKS) for batch in batches
        ]


def reverify(path: Path, *, model: str | None = None, task: Path | None = None) -> Exactness:
    """Run the exactness gate again on a file on disk, from what the file says of itself.

    `model` and `task` are where the dense model and the task's file are now (default: where they were). Raises
    InputError when one of them is not the right one, ExactnessError when logits differ.
    """
    recover(path)
    origin = Origin.read(path)
    loaded = load_dense(origin, model=model)
    data = rebuild_task(origin.task.name, origin.task.parameters, require_tokenizer(loaded), path=task)
    if hash_sets(data) != origin.task.sha256:
        raise InputError(f"this version builds other prompts for {origin.task.name} than {path} was made with")
    rewritten = rewrite_model(loaded, origin.circuit, data.patching)
    return _check(loaded, origin.circuit, rewritten, path, origin.options, data)[0]
