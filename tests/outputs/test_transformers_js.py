"""A bundle for Transformers.js is run by Transformers.js in Node, and answers as the rewritten model does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import EVEN, Bundle, decode, make_bundle, make_dense, make_tokenizer, to_text
from node import require_modules, run_pipelines
from tiny import VARIANTS
from transformers import AutoConfig, AutoTokenizer

from exporter.errors import InputError
from exporter.files.onnx_file import read_onnx
from exporter.graph.metadata import Origin
from exporter.graph.options import Form, GraphOptions
from exporter.loading.sources.reading import write_frame
from exporter.outputs.bundle import is_bundle
from exporter.outputs.manifest import hash_file

PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6, 5], [35, 8, 9, 7, 9]]
GRAPHS = {"onnx/model.onnx": "fp32", "onnx/model_quantized.onnx": "int8", "onnx/model_fp16.onnx": "fp16"}


def make_one(folder: Path, form: Form = "past", **options: Any) -> Bundle:
    return make_bundle(folder, form=form, targets=("transformers-js",), **options)


def read_texts(found: list[Any]) -> list[str]:
    return [row[0]["generated_text"] for row in found]


def test_it_generates_as_the_model_does_in_batches_too(tmp_path: Path) -> None:
    """Every family, with layers of unlike heads; of prompts that differ in length."""
    bundles = {family: make_one(tmp_path / family, family=family) for family in VARIANTS}
    bundles["even"] = make_one(tmp_path / "even", heads=EVEN)
    call = {"task": "text-generation", "dtype": "fp32", "texts": [to_text(prompt) for prompt in PROMPTS]}
    made = [{**call, "folder": str(b.folder), "options": {"max_new_tokens": 4}} for b in bundles.values()]
    *found, endless = run_pipelines([*made, {**call, "folder": str(bundles["gpt2"].folder)}])
    for bundle, batch in zip(bundles.values(), found, strict=True):
        stop = json.loads((bundle.folder / "generation_config.json").read_text())["eos_token_id"]
        for text, prompt in zip(read_texts(batch["given"]), PROMPTS, strict=True):
            tokens = decode(bundle.rewritten, prompt, 4)
            tokens = tokens[: tokens.index(stop)] if stop in tokens else tokens
            read = [int(word[1:]) for word in text.split()[len(prompt) :]]
            assert read[: len(tokens)] == [token for token in tokens if token], bundle.folder.name  # w0 is not shown
    assert "error" in endless  # 256 tokens are asked for, and the model knows 24 positions: refused, not made up


@pytest.mark.parametrize("form", ["plain", "masked"])
def test_without_a_past_it_gives_one_token_for_prompts_of_several_lengths(form: Form, tmp_path: Path) -> None:
    bundle = make_one(tmp_path / "b", form)
    call = {"folder": str(bundle.folder), "task": "text-generation", "options": {"max_new_tokens": 1}}
    texts = [to_text(prompt) for prompt in PROMPTS]
    exact, default, half = run_pipelines(
        [{**call, "texts": texts, "dtype": "fp32"}, {**call, "texts": texts}, {**call, "texts": texts, "dtype": "fp16"}]
    )
    expected = [to_text([*prompt, *decode(bundle.rewritten, prompt, 1)]) for prompt in PROMPTS]
    assert read_texts(exact["given"]) == read_texts(half["given"]) == expected
    assert default["dtype"] == "q8" and len(default["given"]) == 3
    assert "max_new_tokens: 1" in (bundle.folder / "README.md").read_text()


@pytest.mark.parametrize("form", ["plain", "masked"])
def test_a_classifier_is_a_pipeline_of_texts_of_several_lengths(form: Form, tmp_path: Path) -> None:
    graph = GraphOptions(form=form, logits="classes", answer_ids=(7, 3, 5), labels=("seven", "three", "five"))
    bundle = make_one(tmp_path / "b", graph=graph)
    call = {"folder": str(bundle.folder), "task": "text-classification", "dtype": "fp32", "options": {"top_k": 3}}
    (found,) = run_pipelines([{**call, "texts": [to_text(prompt) for prompt in PROMPTS]}])
    for row, prompt in zip(found["given"], PROMPTS, strict=True):
        logits = bundle.rewritten.next_token_logits(torch.tensor([prompt]))[0, [7, 3, 5]]
        expected = dict(zip(graph.labels, logits.softmax(-1).tolist(), strict=True))
        assert {one["label"]: one["score"] for one in row} == pytest.approx(expected, abs=1e-5)
    config = json.loads((bundle.folder / "config.json").read_text())
    assert (config["model_type"], config["export_circuit"]["dense"]["model_type"]) == ("bert", "gpt2")
    assert AutoConfig.from_pretrained(bundle.folder).id2label == dict(enumerate(graph.labels))


def test_a_token_that_begins_every_text_begins_it_there_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "w5"})
    write_frame(tokenizer.backend_tokenizer, [5])
    bundle = make_one(tmp_path / "b", model=replace(make_dense(), tokenizer=tokenizer))
    assert AutoTokenizer.from_pretrained(bundle.folder)("w3 w4")["input_ids"] == [5, 3, 4]
    call = {"folder": str(bundle.folder), "task": "text-generation", "dtype": "fp32", "options": {"max_new_tokens": 3}}
    (found,) = run_pipelines([{**call, "texts": [to_text(prompt) for prompt in PROMPTS]}])
    for text, prompt in zip(read_texts(found["given"]), PROMPTS, strict=True):
        shown = [token for token in [*prompt, *decode(bundle.rewritten, [5, *prompt], 3)] if token not in (0, 5)]
        assert text == to_text(shown)


def test_external_data_is_where_it_is_looked_for(tmp_path: Path) -> None:
    graph = GraphOptions(form="masked", logits="last", external_data=True)
    bundle = make_one(tmp_path / "b", graph=graph)
    settings = json.loads((bundle.folder / "config.json").read_text())["transformers.js_config"]
    beside = {f"{Path(name).name}_data" for name in GRAPHS}
    assert settings["use_external_data_format"] == {name.removesuffix("_data"): 1 for name in beside}
    assert {path.name for path in (bundle.folder / "onnx").iterdir()} == beside | {Path(name).name for name in GRAPHS}
    for name in GRAPHS:
        assert [path.name for path in read_onnx(bundle.folder / name).weights] == [f"{Path(name).name}_data"]
    call = {"folder": str(bundle.folder), "task": "text-generation", "options": {"max_new_tokens": 1}}
    (found,) = run_pipelines([{**call, "dtype": "fp32", "texts": [to_text(PROMPTS[0])]}])
    assert read_texts(found["given"]) == [to_text([*PROMPTS[0], *decode(bundle.rewritten, PROMPTS[0], 1)])]


def test_its_graphs_are_the_bundles_own_or_say_what_they_are(tmp_path: Path) -> None:
    bundle = make_one(tmp_path / "b", "masked")
    assert bundle.manifest.targets == ["transformers-js"]
    assert {name: info.precision for name, info in bundle.manifest.graphs.items()} == GRAPHS
    assert (bundle.folder / "onnx/model.onnx").samefile(bundle.folder / "model.onnx")
    assert {name: Origin.read(bundle.folder / name).options.precision for name in GRAPHS} == GRAPHS
    assert Origin.read(bundle.folder / "onnx/model_quantized.onnx").options.scales == "token"
    assert all(hash_file(bundle.folder / name) == info for name, info in bundle.manifest.files.items())
    assert is_bundle(bundle.folder)
    (bundle.folder / "onnx/mine.txt").write_text("not of the bundle")
    assert not is_bundle(bundle.folder)
    (bundle.folder / "onnx/mine.txt").unlink()
    (bundle.folder / "more").mkdir()
    assert not is_bundle(bundle.folder)
    (bundle.folder / "more").rmdir()
    (bundle.folder / "onnx").rename(tmp_path / "onnx")
    (bundle.folder / "onnx").symlink_to(tmp_path / "onnx")
    assert not is_bundle(bundle.folder)


def test_a_graph_without_a_mask_gets_one(tmp_path: Path) -> None:
    graph = GraphOptions(form="plain", logits="last", vocabulary=tuple(range(37)), length=6, opening=(3,))
    bundle = make_one(tmp_path / "b", graph=graph)
    made = Origin.read(bundle.folder / "onnx/model.onnx").options
    assert (made.form, made.length, made.opening, made.vocabulary) == ("masked", None, (), graph.vocabulary)
    assert Origin.read(bundle.folder / "model.onnx").options == graph


def test_logits_of_some_tokens_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    graph = GraphOptions(logits="answers", answer_ids=(3, 1))
    with pytest.raises(InputError, match=r"^--for transformers-js picks tokens by their place .*--logits classes"):
        make_one(tmp_path / "b", graph=graph)
    bundle = make_one(tmp_path / "c", graph=graph, strict=False)  # after a search, which is not thrown away
    assert "not for transformers-js: it picks tokens by their place" in bundle.manifest.notes[-1]
    assert not (bundle.folder / "index.html").exists()


def test_every_family_has_a_model_type_that_it_generates_with() -> None:
    source = (require_modules() / "@huggingface/transformers/src/models/registry.js").read_text()
    known = source[source.index("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ") :].split("]);")[0]
    assert all(f"['{family}'," in known for family in VARIANTS)
