"""Bundles of tiny models of every family, written without a whole job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from test_manifest import DATA
from tiny import VOCAB, make_model, make_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exporter.bundle.outputs import write_bundle
from exporter.circuit import Circuit, Head
from exporter.circuit_model import CircuitModel
from exporter.graph_options import Form, GraphOptions
from exporter.loading import LanguageModel
from exporter.manifest import ExportInfo, Manifest, ModelInfo, Origin, TaskInfo
from exporter.onnx_export import export_onnx
from exporter.rewrite import rewrite_model

UNEVEN = (Head(0, 1), Head(2, 0), Head(2, 1), Head(2, 3))  # one head, none, three
EVEN = (Head(0, 1), Head(0, 2), Head(2, 0), Head(2, 3))  # two, none, two; with two groups also of keys and values
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "starcoder2")


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
    **options: object,
) -> Bundle:
    model = make_dense(family, positions=positions) if model is None else model
    circuit = Circuit(heads=tuple(heads), **({"mlps": (1, 2), "mean": "global"} | options))
    rewritten = rewrite_model(model, circuit, make_prompts(8, 6))
    info = ModelInfo(name=model.name, revision=None, sha256="0" * 64, family=model.family, n_layers=3, n_heads=4)
    origin = Origin(task=TaskInfo(name="acronym", parameters={}, sha256=""), model=info, circuit=circuit)
    folder.mkdir(exist_ok=True)
    graph = graph or GraphOptions(form=form, logits="last")
    description = export_onnx(rewritten, folder / "model.onnx", graph, metadata=origin.to_metadata())
    known = Manifest.model_validate(DATA)
    export = ExportInfo.of(graph, known.export.served)
    changes = {"onnx": description, "circuit": circuit.to_json(), "model": info, "export": export}
    manifest = known.model_copy(update=changes)
    return Bundle(folder, rewritten, write_bundle(folder, manifest, model, example="w3 w1 w4"))
