"""Bundles of tiny models of every family, written without a whole job; what their models say, and their run.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from manifests import DATA
from tiny import VOCAB, make_model, make_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from waits import HANG

from exporter.circuit import Ablation, Circuit, Head
from exporter.graph.export import export_onnx
from exporter.graph.metadata import TEMPLATE_KEY, ModelInfo, Origin, TaskInfo
from exporter.graph.options import Form, GraphOptions
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.outputs.bundle import write_bundle
from exporter.outputs.manifest import ExportInfo, Manifest
from exporter.outputs.targets import choose_targets
from exporter.outputs.targets.graph_files import list_graphs, place_graph
from exporter.rewrite.surgery import rewrite_model
from exporter.tasks.template import Template

UNEVEN = (Head(0, 1), Head(2, 0), Head(2, 1), Head(2, 3))  # one head, none, three
EVEN = (Head(0, 1), Head(0, 2), Head(2, 0), Head(2, 3))  # two, none, two; with two groups also of keys and values
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "starcoder2")
# run.py, where nothing can be imported but what it says that it needs.
BLOCKED = """
import runpy, sys
for name in ("torch", "transformers", "exporter", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_tokenizer(*, truncate: int | None = None) -> PreTrainedTokenizerFast:
    """Words w0 to w36, split at spaces."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if truncate is not None:
        tokenizer.enable_truncation(truncate)
        tokenizer.enable_padding(length=truncate)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0")


def to_text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, the rewritten model in it, and its manifest."""

    folder: Path
    rewritten: CircuitModel
    manifest: Manifest


def make_dense(family: str = "gpt2", *, positions: int = 24) -> LanguageModel:
    shape = {"num_key_value_heads": 2} if family in GROUPED else {}
    model = make_model(family, n_layers=3, n_heads=4, positions=positions, **shape)
    return replace(model, tokenizer=make_tokenizer())


def make_bundle(
    folder: Path,
    family: str = "gpt2",
    form: Form = "past",
    *,
    heads: Sequence[Head] = UNEVEN,
    positions: int = 24,
    model: LanguageModel | None = None,
    graph: GraphOptions | None = None,
    scope: Scope | None = None,
    targets: Sequence[str] = (),
    strict: bool = True,
    template: Template | None = None,
    **options: object,
) -> Bundle:
    """`targets` are named for the bundle; the graphs that they want are exported without the gates of a job.

    `template` stands around the texts `w7 w8` and `w9` in the prompts that the bundle's tokenizer is compared with.
    """
    model = make_dense(family, positions=positions) if model is None else model
    circuit = Circuit(heads=tuple(heads), **({"mlps": (1, 2), "ablation": Ablation(by="global")} | options))
    rewritten = rewrite_model(model, circuit, make_prompts(8, 6))
    info = ModelInfo(name=model.name, revision=None, sha256=model.sha256, family=model.family, n_layers=3, n_heads=4)
    folder.mkdir(exist_ok=True)
    graph = graph or GraphOptions(form=form, logits="last", optimum=form == "past" and "optimum" in targets)
    origin = Origin(TaskInfo(name="acronym", parameters={}, sha256=""), info, circuit, options=graph)
    told = origin.to_metadata() | ({} if template is None else {TEMPLATE_KEY: json.dumps(asdict(template))})
    description = export_onnx(rewritten, folder / "model.onnx", graph, metadata=told, scope=scope)
    known = Manifest.model_validate(DATA)
    export = ExportInfo.of(graph, known.export.served, template)
    graphs = {}
    for name, wanted in list_graphs(choose_targets(targets).values(), "acronym").items():
        if (adapted := wanted.adapt(graph)) != graph:
            (folder / "draft").mkdir()
            told = replace(origin, options=adapted).to_metadata()
            export_onnx(rewritten, folder / "draft" / "model.onnx", adapted, metadata=told)
            place_graph(folder / "draft" / "model.onnx", folder / name, weights=wanted.weights_name)
            shutil.rmtree(folder / "draft")
            graphs[name] = ExportInfo.of(adapted, known.export.served)
    changes = {"onnx": description, "circuit": circuit.to_json(), "model": info, "export": export, "graphs": graphs}
    manifest = known.model_copy(update=changes)
    prompts = [] if template is None else [template.fill(text) for text in ("w7 w8", "w9")]
    readings = [(prompt, model.tokenizer.encode(prompt)) for prompt in prompts]
    written = write_bundle(
        folder, manifest, model, example="w3 w1 w4", readings=readings, targets=targets, strict=strict
    )
    return Bundle(folder, rewritten, written)


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.py in a process that has neither torch nor transformers nor us, started elsewhere."""
    command = [sys.executable, "-I", "-c", BLOCKED, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, cwd="/")


def decode(model: CircuitModel, prompt: Sequence[int], n: int) -> list[int]:
    """What the rewritten model says, the whole sequence computed anew for each token."""
    ids = torch.tensor([list(prompt)])
    for _ in range(n):
        ids = torch.cat([ids, model.next_token_logits(ids).argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(prompt) :].tolist()
