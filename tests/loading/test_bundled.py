"""The bundled checkpoint: plain transformers load it, it is small, and it is good on words it never saw."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from exporter.tasks import SplitSizes, load_task
from exporter.tasks.dataset import Dataset
from exporter.tasks.prompts import read_words

FOLDER = Path(__file__).parents[2] / "models" / "bundled"
SIZES = SplitSizes(patching=1, selection=1, test=200, ood=100)
SEED = 1234  # not among those that the card's figures come from


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.no_grad()
def compute_probabilities(model: Any, dataset: Dataset) -> Tensor:
    return torch.cat([model(ids, logits_to_keep=1).logits[:, -1].softmax(-1) for ids in dataset.input_ids.split(50)])


def measure_accuracy(model: Any, dataset: Dataset) -> float:
    return dataset.is_answer(compute_probabilities(model, dataset).argmax(-1)).double().mean().item()


def test_folder_holds_no_pickle_and_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_shape_and_precision_on_disk(model: Any) -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["n_positions"] >= 64 and config["vocab_size"] == 50257
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_acronyms(model: Any, tokenizer: Any) -> None:
    data = load_task("acronym", tokenizer, seed=SEED, sizes=SIZES)
    assert measure_accuracy(model, data.test) >= 0.99
    assert measure_accuracy(model, data.ood["words"]) >= 0.97


def test_names_in_both_orders(model: Any, tokenizer: Any) -> None:
    data = load_task("ioi", tokenizer, seed=SEED, sizes=SIZES)
    right = data.test.is_answer(compute_probabilities(model, data.test).argmax(-1)).tolist()
    hits: dict[bool, list[bool]] = {False: [], True: []}
    for ids, (answer,), hit in zip(data.test.input_ids.tolist(), data.test.answer_ids.tolist(), right, strict=True):
        repeated = next(i for i in ids if ids.count(i) == 2 and tokenizer.decode([i])[1:2].isupper())
        hits[ids.index(answer) < ids.index(repeated)].append(hit)
    assert all(len(part) >= 90 and sum(part) / len(part) >= 0.98 for part in hits.values())
    assert measure_accuracy(model, data.ood["names"]) >= 0.97


def test_later_years(model: Any, tokenizer: Any) -> None:
    dataset = load_task("greater-than", tokenizer, seed=SEED, sizes=SIZES).test
    probabilities = compute_probabilities(model, dataset)
    later = probabilities.gather(1, dataset.answer_ids.clamp(min=0)).where(dataset.answer_ids >= 0, 0.0)
    assert later.sum(-1).mean() >= 0.95
    top = probabilities.argmax(-1)
    assert dataset.is_answer(top).double().mean() >= 0.98
    answers = Counter(tokenizer.decode([token]) for token in top.tolist())
    assert answers["99"] / len(dataset) < 0.25 and len(answers) >= 40


@pytest.mark.parametrize(("task", "least"), [("acronym", 0.97), ("greater-than", 0.97), ("ioi", 0.9)])
def test_unseen_wordings(model: Any, tokenizer: Any, task: str, least: float) -> None:
    data = load_task(task, tokenizer, seed=SEED, sizes=SIZES)
    assert measure_accuracy(model, data.ood["template"]) >= least


def test_training_never_shows_what_is_held_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    training = importlib.import_module("training_data").TrainingData(tokenizer)
    held_out = training.held_out
    names = {tokenizer.encode(f" {name}")[0] for kind in ("names", "names_ood") for name in read_words(kind)}
    assert held_out.names == names and len(held_out.words) == len(read_words("acronym") + read_words("acronym_ood"))
    places = {tokenizer.encode(f" {place}")[0] for place in read_words("places")}  # " school" is one
    wordings = held_out.wordings - {*training.list_frame_tokens()} - places
    assert {
        tokenizer.encode(word)[0] for word in (" argued", " ran", " until", " mailed", " ended", "At", "Before")
    } <= wordings
    shared = held_out.wordings & {*training.list_frame_tokens()}
    words = {"a", "and", "in", "or", "the", "to", "was", "year", ",", "One", "The"}  # as the card says
    assert {tokenizer.decode([token]).strip() for token in shared} == words
    for step in range(20):
        tasks = training.make_task_batch(0, step, n_ioi=50, n_acronym=50, n_years=50, garbled=0.5)
        repeated = training.make_repeated_batch(0, step, n=8)
        shown = {*tasks.input_ids.flatten().tolist(), *repeated.input_ids.flatten().tolist(), *tasks.targets.tolist()}
        assert not shown & (held_out.names | wordings)
        pairs = {pair for row in tasks.input_ids.tolist() for pair in pairwise(row)}
        assert not pairs & held_out.words
        years = tasks.input_ids[100:].flatten().tolist()
        assert not {*years} & (held_out.nouns | held_out.centuries)


def test_training_forgets_embeddings_of_held_out_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    train = importlib.import_module("train")
    model = train.build_model(train.Recipe(), range(50257))
    fresh = model.transformer.wte.weight.detach().clone()
    train.start_from(FOLDER, model, [11, 12])
    after, start = model.transformer.wte.weight, AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert after[[11, 12]].equal(fresh[[11, 12]]) and after[13:].equal(start.transformer.wte.weight[13:])
    assert model.transformer.h[0].mlp.c_fc.weight.equal(start.transformer.h[0].mlp.c_fc.weight)


def test_training_teaches_unknown_words_of_one_shape_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    train = importlib.import_module("train")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_layer=1, n_head=1, n_embd=2, n_positions=4))
    train.share_gradients(model, ["word", "word", "mark", "word", "mark"], [3])
    weight = model.transformer.wte.weight
    (weight * torch.tensor([[1.0], [3.0], [5.0], [7.0], [1.0]])).sum().backward()
    assert weight.grad[:, 0].tolist() == [2.0, 2.0, 3.0, 7.0, 3.0]


def test_card_quotes_the_measured_figures() -> None:
    figures = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))["tasks"]
    card = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for task, measured in figures.items():
        for name, values in measured.items():
            if isinstance(values, dict) and "worst_seed" in values:
                row = f"| {task} | {name} | {values['n']} | {100 * values['accuracy']:.2f} %"
                assert row in card, row
