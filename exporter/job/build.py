"""The stages after a search: rewrite, export, verify, evaluate, measure; and `reverify`, the gate for an old file."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from exporter.circuit import Circuit, SearchRecord
from exporter.errors import InputError
from exporter.evidence.evaluate import measure_prompts, summarise_values
from exporter.evidence.figures import Evaluation
from exporter.evidence.fitness import describe_doubt, require_tokenizer
from exporter.evidence.guard import note_guard
from exporter.evidence.showing import show_attention, show_prompts
from exporter.evidence.shown import ShownAttention, ShownPrompt
from exporter.files import surgery_name
from exporter.files.onnx_file import read_onnx
from exporter.files.reading import read_steadily
from exporter.graph.description import OnnxDescription
from exporter.graph.export import export_onnx
from exporter.graph.metadata import EXAMPLES_KEY, TEMPLATE_KEY, Origin, collect_versions
from exporter.graph.options import GraphOptions
from exporter.graph.scope import read_scope
from exporter.job.clock import Clock
from exporter.job.command import write_command
from exporter.job.gate import Gate
from exporter.job.guard import plan_scope, try_guard
from exporter.job.plan import Plan, hash_sets
from exporter.job.rounding import choose_rounding
from exporter.job.timing import measure_file
from exporter.job.variants import build_variants
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.outputs.healed import load_surgery_of
from exporter.outputs.manifest import ExportInfo, Manifest, Size, hash_file
from exporter.outputs.reference import load_dense
from exporter.rewrite.folds import fold_model
from exporter.rewrite.surgery import Surgery, operate, plan_surgery, slice_model
from exporter.tasks import TaskData, is_file_task, rebuild_task
from exporter.tasks.dataset import Dataset
from exporter.verify.figures import Exactness

N_EXAMPLES = 8  # prompts that the file holds in its metadata: those with the widest margin between two logits
_EXAMPLES_OF = 64  # test prompts that they are chosen from


@dataclass(frozen=True, eq=False)
class Found:
    """A circuit, how it was found, and its surgery where there is one already: means of a search in float32, edits."""

    circuit: Circuit
    record: SearchRecord
    surgery: Surgery | None = None


def build_file(plan: Plan, found: Found, path: Path, options: GraphOptions, clock: Clock | None = None) -> Manifest:
    """Rewrite, export to `path`, verify, evaluate, measure.

    Without a clock it is a rehearsal: the gates are off, and the dense model is neither exported nor timed. Raises
    ExactnessError: logits differ, or a reduced precision answers otherwise; InputError: circuit and model do not fit.
    """
    rehearsed, clock = clock is None, clock or Clock(None)
    model, data = plan.model, plan.data
    with clock.stage("rewrite"):
        surgery, sliced, rewritten = _rewrite(plan, found)
    with clock.stage("export"):
        if not rehearsed:
            options = choose_rounding(model.dense, rewritten, options, data.selection, found.record.budget)
        scope = plan_scope(plan, rewritten, options, rehearsed=rehearsed)
        description, beside = _export(plan, found, surgery, rewritten, path, options, scope)
    with clock.stage("verify"):
        gate = Gate(model, surgery, rewritten, data, scope, shut=not rehearsed)
        exactness, served = gate.prove(path, options), gate.serve(path, options)
        variants = build_variants(plan, path, options, gate)
    with clock.stage("evaluate"):
        figures, prompts, attention = _evaluate(model, rewritten, data)
        guard = try_guard(plan, rewritten, path, options, scope)
    doubts = _list_doubts(plan, figures["test"])
    with clock.stage("measure"):
        dense_bytes, latency, memory = measure_file(plan, path, options, rehearsed=rehearsed)
    return Manifest(
        schema=1,
        task=plan.task_info,
        model=plan.model_info,
        circuit=found.circuit.to_json() | found.record.to_json(),
        alpha_sweep=plan.alpha_sweep,
        size=_measure_size(model.dense, sliced),
        test=figures.pop("test"),
        ood=figures,
        exactness=exactness,
        export=ExportInfo.of(options, served, data.template),
        onnx=description,
        latency=latency,
        memory=memory,
        dense_onnx_bytes=dense_bytes,
        files={file.name: hash_file(file) for file in (path, *read_onnx(path).weights, *beside)},
        seconds=clock.seconds,
        versions=collect_versions(),
        notes=[*plan.notes, *doubts, *note_guard(guard), *variants.notes],
        graphs=variants.graphs,
        command=write_command(plan.job),
        prompts=prompts,
        attention=attention,
        guard=guard,
    )


def _list_doubts(plan: Plan, test: Evaluation) -> tuple[str, ...]:
    """What to say of a built-in task at which the model fails; `prepare` has checked a task file already."""
    if is_file_task(plan.job.task):
        return ()
    return tuple(describe_doubt(plan.data.task, plan.model, plan.data.test, test.dense))


def _rewrite(plan: Plan, found: Found) -> tuple[Surgery, CircuitModel, CircuitModel]:
    """The surgery, the sliced model, and the one that is exported, in float32 in a rehearsal, too."""
    surgery = found.surgery or plan_surgery(plan.model, found.circuit, plan.data.patching)
    sliced = slice_model(plan.model.dense, surgery)
    rewritten = fold_model(sliced)
    if plan.model.hf.dtype != torch.float32:
        rewritten = copy.deepcopy(rewritten).float()
    return surgery, sliced, rewritten


def _export(
    plan: Plan,
    found: Found,
    surgery: Surgery,
    rewritten: CircuitModel,
    path: Path,
    options: GraphOptions,
    scope: Scope | None,
) -> tuple[OnnxDescription, list[Path]]:
    """Write the graph, and beside it the surgery where it has edits; returns the files beside the graph, too."""
    sha256 = surgery.sha256 if surgery.edits else None
    origin = Origin(plan.task_info, plan.model_info, found.circuit, found.record, options, sha256)
    metadata = {**origin.to_metadata(), EXAMPLES_KEY: _give_examples(rewritten, plan.data.test, options)}
    if plan.data.template is not None:
        metadata[TEMPLATE_KEY] = json.dumps(asdict(plan.data.template))
    description = export_onnx(rewritten, path, options, metadata=metadata, scope=scope)
    if sha256 is None:
        return description, []
    beside = path.with_name(surgery_name(path.name, sha256))
    surgery.save(beside)
    return description, [beside]


def _evaluate(
    model: LanguageModel, rewritten: CircuitModel, data: TaskData
) -> tuple[dict[str, Evaluation], list[ShownPrompt], ShownAttention | None]:
    """Evaluations of the test set and each out-of-distribution set (unseen words or templates) by name; some prompts.

    The attention is of the test set's first prompt that is short enough.
    """
    sets = {"test": data.test, **data.ood}
    models = (model.dense.answer_logits, rewritten.answer_logits)
    values = {name: measure_prompts(*models, prompts) for name, prompts in sets.items()}
    figures = {name: summarise_values(values[name], prompts) for name, prompts in sets.items()}
    decode = require_tokenizer(model).decode
    shown = show_prompts(*models, sets, {name: of_set["kl"] for name, of_set in values.items()}, decode)
    return figures, shown, show_attention(rewritten, data.test, decode)


def _give_examples(rewritten: CircuitModel, prompts: Dataset, options: GraphOptions) -> str:
    """Some prompts and the circuit's answers as JSON, to check the file by itself: see `EXAMPLES_KEY`.

    Those with the widest margin between the best two logits, whose answers rounding is least likely to change on
    another device or in reduced precision.
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


def reverify(path: Path, *, model: str | None = None, task: Path | None = None) -> Exactness:
    """Run the exactness gate again on an exported file, from the metadata in it.

    `model` and `task` are the present paths of the dense model and of the task's data file (default: as recorded).
    Raises InputError: model or prompts differ from the recorded ones; ExactnessError: logits differ.
    """
    return read_steadily(path, lambda: _reverify(path, model, task))


def _reverify(path: Path, model: str | None, task: Path | None) -> Exactness:
    origin = Origin.read(path)
    loaded = load_dense(origin, model=model)
    data = rebuild_task(origin.task.name, origin.task.parameters, require_tokenizer(loaded), path=task)
    if hash_sets(data) != origin.task.sha256:
        raise InputError(f"this version builds other prompts for {origin.task.name} than {path} was made with")
    surgery = load_surgery_of(path, origin) or plan_surgery(loaded, origin.circuit, data.patching)
    gate = Gate(loaded, surgery, operate(loaded.dense, surgery), data, read_scope(path))
    exactness = gate.prove(path, origin.options)
    gate.serve(path, origin.options)
    return exactness
