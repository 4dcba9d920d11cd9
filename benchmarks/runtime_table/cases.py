"""The forms of a file, each as a bundle's files for the runtimes, with prompts and the circuit's own answers to them.

The circuit is one of the bundled checkpoint, given by its heads and MLPs, so that nothing is searched for. The prompts
are those of the task's test set whose answers have the widest margin, as in an exported file's own examples. Where the
graph takes a mask, they lose a different number of first tokens each, so that the batch is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.circuit import Ablation, Circuit, Head
from exporter.graph.export import export_onnx
from exporter.graph.metadata import TaskInfo
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel, load_model
from exporter.loading.sources.tokenizer import save_tokenizer
from exporter.network.model import CircuitModel
from exporter.outputs.manifest import ExportInfo, Manifest
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets import TARGETS
from exporter.outputs.targets.contents import write_contents
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session
from exporter.tasks import SplitSizes, TaskData, load_task
from exporter.tasks.classes import name_classes
from exporter.verify.precision import evaluate_file

TASK = "acronym"
N_PROMPTS = 4
READERS = ("onnxruntime", "optimum", "genai", "c")  # the targets whose files the runtimes of the table read
LAYERS_ALIKE = (Head(0, 3), Head(0, 5), Head(0, 6))
LAYERS_DIFFER = (*LAYERS_ALIKE, Head(1, 0))
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Form:
    """A row of the table. options: the graph's, `answers` and `words` filled in for the task; pinned: by position."""

    name: str
    options: GraphOptions
    pinned: bool = False
    heads: tuple[Head, ...] = LAYERS_ALIKE
    of_task: tuple[str, ...] = ()  # of `answer_ids`, `labels` and `vocabulary`: those that the task fills in


@dataclass(frozen=True)
class Case:
    """A form as files in `folder`; `places` are the logits that the circuit has highest, `tokens` their token ids."""

    form: Form
    folder: Path
    shape: BundleShape
    prompts: list[list[int]]
    places: list[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    def feed(self, prompts: Sequence[Sequence[int]]) -> Arrays:
        """The graph's inputs for prompts as one batch, padded on the left."""
        longest = max(map(len, prompts))
        ids, mask = (np.zeros((len(prompts), longest), np.int64) for _ in range(2))
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
        feeds: Arrays = {"input_ids": ids}
        for name, dims in self.shape.inputs.items():
            if name == "attention_mask":
                feeds[name] = mask
            elif name == "position_ids":
                feeds[name] = np.maximum(mask.cumsum(1) - 1, 0)
            elif name.startswith("past"):
                feeds[name] = np.zeros((len(prompts), int(dims[1]), 0, int(dims[3])), np.float32)
        return feeds


_CLASSES, _VOCABULARY = ("answer_ids", "labels"), ("answer_ids", "labels", "vocabulary")
_INT8: dict[str, Any] = {"precision": "int8", "scales": "token"}
FORMS = (
    Form("plain, one length", GraphOptions(logits="last"), pinned=True),
    Form("plain, any length", GraphOptions(logits="last")),
    Form("masked", GraphOptions(form="masked", logits="last")),
    Form("past, layers alike", GraphOptions(form="past", logits="last")),
    Form("past, layers differ", GraphOptions(form="past", logits="last"), heads=LAYERS_DIFFER),
    Form("past, `--for optimum`", GraphOptions(form="past", logits="last", optimum=True), heads=LAYERS_DIFFER),
    Form("`--opset 17`, masked", GraphOptions(form="masked", logits="last", opset=17)),
    Form("`--logits all`, one length", GraphOptions(), pinned=True),
    Form("`--logits answers`", GraphOptions(logits="answers", answer_ids=(0,)), pinned=True, of_task=("answer_ids",)),
    Form("`--logits classes`", GraphOptions(logits="classes", answer_ids=(0, 1), labels=("0", "1")), pinned=True,
         of_task=_CLASSES),
    Form("classes, masked", GraphOptions("masked", "classes", answer_ids=(0, 1), labels=("0", "1")), of_task=_CLASSES),
    Form("classes, `--vocab task`", GraphOptions(logits="classes", answer_ids=(0, 1), labels=("0", "1")), pinned=True,
         of_task=_VOCABULARY),
    Form("int8, one length", GraphOptions(logits="last", **_INT8), pinned=True),
    Form("int8, masked", GraphOptions("masked", "last", **_INT8)),
    Form("int8, past", GraphOptions("past", "last", **_INT8)),
    Form("int8, classes, `--vocab task`", GraphOptions("plain", "classes", (0, 1), labels=("0", "1"), **_INT8),
         pinned=True, of_task=_VOCABULARY),
)  # fmt: skip


def make_cases(folder: Path) -> list[Case]:
    """Write every form into a folder of its own."""
    model = load_model("bundled")
    sizes = SplitSizes(patching=60, selection=20, test=40)
    data = load_task(TASK, model.tokenizer, sizes=sizes)
    return [make_case(folder / f"case{number}", form, model, data) for number, form in enumerate(FORMS)]


def make_case(folder: Path, form: Form, model: LanguageModel, data: TaskData) -> Case:
    """One form's files, as `--for` would leave them for those of `READERS` that take it."""
    folder.mkdir(parents=True)
    filled = {
        "answer_ids": data.answer_ids,
        "labels": name_classes(data, model.tokenizer),
        "vocabulary": data.input_ids,
    }
    options = replace(form.options, **{name: filled[name] for name in form.of_task})
    circuit = Circuit(heads=form.heads, mlps=(0,), ablation=Ablation(by="position" if form.pinned else "global"))
    rewritten = rewrite_model(model, circuit, data.patching)
    described = export_onnx(rewritten, folder / "model.onnx", options)
    served = evaluate_file(open_session(folder / "model.onnx"), rewritten, data.test)
    export = ExportInfo.of(options, served)
    task = TaskInfo(name=TASK, parameters={}, sha256="")
    # of a manifest, what targets read of it: nothing was searched or timed here
    manifest = Manifest.model_construct(
        task=task, export=export, onnx=described, circuit=circuit.to_json(), targets=[], graphs={}, notes=[]
    )
    shape = BundleShape(folder / "model.onnx", manifest, model)
    save_tokenizer(model.tokenizer, folder, longest=shape.max_length, masked=options.form != "plain")
    readers = [TARGETS[name] for name in READERS]
    write_contents(folder, [reader.write(shape) for reader in readers if reader.refuse(shape) is None])
    prompts, places = choose_prompts(rewritten, data, options)
    tokens = [options.answer_ids[place] if options.answer_ids else place for place in places]
    return Case(form, folder, shape, prompts, places, tokens)


def choose_prompts(rewritten: CircuitModel, data: TaskData, options: GraphOptions) -> tuple[list[list[int]], list[int]]:
    """The prompts that the circuit is surest of, and for each the place of its highest logit."""
    known = torch.tensor(options.answer_ids) if options.answer_ids else torch.arange(len(rewritten.W_E))
    rows = [row[(place % N_PROMPTS) * (options.form != "plain") :] for place, row in enumerate(data.test.input_ids)]
    best = [rewritten.next_token_logits(row[None])[0, known].topk(2) for row in rows]
    margins = [float(found.values[0] - found.values[1]) for found in best]
    sure: list[int] = []
    for length in {len(row) for row in rows}:  # the surest of each length, so that a padded batch has them all
        of_length = [place for place, row in enumerate(rows) if len(row) == length]
        n_wanted = N_PROMPTS if options.form == "plain" else 1
        sure += sorted(of_length, key=lambda place: -margins[place])[:n_wanted]
    return [rows[place].tolist() for place in sure], [int(best[place].indices[0]) for place in sure]
