"""Tasks: sets are disjoint, repeatable and aligned, answers are right, misuse is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from exporter.errors import InputError, UsageError
from exporter.tasks import TASKS, SplitSizes, TaskData, load_task
from exporter.tasks.dataset import Dataset
from exporter.tasks.prompts import read_words
from exporter.tasks.spaces import draw_distinct

ROOT = Path(__file__).parents[2]
SMALL = SplitSizes(patching=40, selection=40, test=60, ood=40)
LISTS = ("acronym", "names", "events")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "models" / "bundled")


@pytest.fixture(scope="module", params=sorted(TASKS))
def data(request: pytest.FixtureRequest, tokenizer: Any) -> TaskData:
    return load_task(request.param, tokenizer)


def list_sets(data: TaskData) -> dict[str, Dataset]:
    return {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}


def list_prompts(dataset: Dataset) -> list[tuple[int, ...]]:
    return [tuple(row) for row in dataset.input_ids.tolist()]


def strip_lead(data: TaskData, ids: tuple[int, ...], tokenizer: Any) -> list[int]:
    if data.task == "acronym":
        assert ids[0] == tokenizer.eos_token_id
        return list(ids[1:])
    return list(ids)


def test_default_sizes_and_one_length(data: TaskData) -> None:
    sets = list_sets(data)
    assert [len(sets[name]) for name in ("patching", "selection", "test")] == [250, 250, 500]
    assert len(data.ood) >= 2 and all(len(dataset) == 200 for dataset in data.ood.values())
    assert len({dataset.length for dataset in sets.values()}) == 1
    assert data.test.length == {"acronym": 11, "greater-than": 12, "ioi": 15}[data.task]


def test_no_prompt_occurs_twice(data: TaskData) -> None:
    prompts = [prompt for dataset in list_sets(data).values() for prompt in list_prompts(dataset)]
    assert len(set(prompts)) == len(prompts)


def test_text_reads_back_as_the_same_tokens(data: TaskData, tokenizer: Any) -> None:
    for dataset in list_sets(data).values():
        for prompt in list_prompts(dataset):
            ids = strip_lead(data, prompt, tokenizer)
            assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids


def test_parameters_rebuild_the_data(data: TaskData, tokenizer: Any) -> None:
    parameters = json.loads(json.dumps(data.parameters))
    chosen = {name: parameters[name] for name in TASKS[data.task].choices}
    again = load_task(data.task, tokenizer, seed=parameters["seed"], sizes=SplitSizes(**parameters["sizes"]), **chosen)
    for name, dataset in list_sets(data).items():
        assert torch.equal(list_sets(again)[name].input_ids, dataset.input_ids)
        assert torch.equal(list_sets(again)[name].answer_ids, dataset.answer_ids)


def test_acronym_answers(tokenizer: Any) -> None:
    data = load_task("acronym", tokenizer)
    for dataset in list_sets(data).values():
        for ids, (answer,) in zip(dataset.input_ids.tolist(), dataset.answer_ids.tolist(), strict=True):
            tokens = [tokenizer.decode([token]) for token in ids]
            capitals = [tokens[place].strip() for place in (2, 4, 6)]
            assert capitals == [tokens[9], tokens[10], tokenizer.decode([answer])]
            text = tokenizer.decode([*ids[1:], answer])
            assert tokenizer.encode(text, add_special_tokens=False) == [*ids[1:], answer]
    asked = torch.bincount(data.test.answer_ids.flatten())
    assert asked[asked > 0].numel() >= 20 and asked.max() <= 40  # no letter dominates


def test_the_whole_acronym_is_the_answer(tokenizer: Any) -> None:
    one, three = (load_task("acronym", tokenizer, sizes=SMALL, letters=letters) for letters in (1, 3))
    for name, dataset in list_sets(three).items():
        assert torch.equal(dataset.input_ids, list_sets(one)[name].input_ids)  # two letters stand in the prompt
        assert dataset.steps.shape == (len(dataset), 3, 1)
        assert torch.equal(dataset.steps[:, 2], list_sets(one)[name].answer_ids)
        for ids, steps in zip(dataset.input_ids.tolist(), dataset.steps[..., 0].tolist(), strict=True):
            assert ids[-2:] == steps[:2] and tokenizer.decode(ids[-3:-2]) in (" (", " [")
            assert "".join(tokenizer.decode(ids).split()[k][0] for k in (1, 2, 3)) == tokenizer.decode(steps)
    assert (one.parameters["letters"], three.parameters["letters"]) == (1, 3)
    prompt, answer = TASKS["acronym"].example(tokenizer, letters=3)
    assert prompt.endswith(" (") and len(answer) == 3 and answer.isupper()


@pytest.mark.parametrize("template", ["all", "paper"])
def test_ioi_answer_is_the_name_that_occurs_once(tokenizer: Any, template: str) -> None:
    data = load_task("ioi", tokenizer, template=template)
    names = {tokenizer.encode(f" {name}")[0] for kind in ("names", "names_ood") for name in read_words(kind)}
    repeats_first = []
    for dataset in list_sets(data).values():
        for ids, (answer,) in zip(dataset.input_ids.tolist(), dataset.answer_ids.tolist(), strict=True):
            mentioned = [token for token in ids if token in names]
            assert len(mentioned) == 3 and mentioned.count(answer) == 1
            repeats_first.append(mentioned[0] == mentioned[2])
    share = sum(repeats_first) / len(repeats_first)
    assert share == 1 if template == "paper" else 0.47 < share < 0.53


def test_ioi_wordings(tokenizer: Any) -> None:
    everything = load_task("ioi", tokenizer, sizes=SMALL)
    paper = load_task("ioi", tokenizer, sizes=SMALL, template="paper")
    assert len(everything.parameters["wordings"]) >= 5
    assert len(paper.parameters["wordings"]) == 1
    assert not torch.equal(everything.test.input_ids, paper.test.input_ids)


def test_greater_than_answers_are_all_later_years(tokenizer: Any) -> None:
    data = load_task("greater-than", tokenizer)
    for name, dataset in list_sets(data).items():
        for ids, answers in zip(dataset.input_ids.tolist(), dataset.answer_ids.tolist(), strict=True):
            century = ids[-1]
            year = int(tokenizer.decode([ids[ids.index(century) + 1]]))
            later = [int(tokenizer.decode([token])) for token in answers if token >= 0]
            assert 2 <= year <= 98 and later == list(range(year + 1, 100)), name


def test_out_of_distribution_words_are_other_words(tokenizer: Any) -> None:
    for name in LISTS:
        main, ood = set(read_words(name)), set(read_words(f"{name}_ood"))
        assert not main & ood and len(main) > len(ood) > 20
    assert len(read_words("names")) >= 150 and len(read_words("acronym")) >= 400
    data = load_task("ioi", tokenizer)
    unseen = {tokenizer.encode(f" {name}")[0] for name in read_words("names_ood")}
    assert set(data.ood["names"].answer_ids.flatten().tolist()) <= unseen
    assert not set(data.test.input_ids.flatten().tolist()) & unseen


@pytest.mark.parametrize("name", sorted(TASKS))
def test_another_seed_gives_other_prompts(tokenizer: Any, name: str) -> None:
    first, second = (load_task(name, tokenizer, seed=seed, sizes=SMALL) for seed in (0, 1))
    assert not torch.equal(first.test.input_ids, second.test.input_ids)


@pytest.mark.slow
def test_the_same_in_another_process(tokenizer: Any) -> None:
    code = (
        "from transformers import AutoTokenizer as A; from exporter.tasks import *;"
        "t = A.from_pretrained('models/bundled'); s = SplitSizes(9, 9, 9, 9);"
        "print([load_task(n, t, sizes=s).test.input_ids.tolist() for n in TASKS])"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}  # and this process's is another
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    here = [load_task(name, tokenizer, sizes=SplitSizes(9, 9, 9, 9)).test.input_ids.tolist() for name in TASKS]
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize("name", sorted(TASKS))
def test_example_is_what_the_task_asks(tokenizer: Any, name: str) -> None:
    prompt, answer = TASKS[name].example(tokenizer)
    start, known = {
        "acronym": ("<|endoftext|>The ", 1),
        "greater-than": ("The ", 2),
        "ioi": ("", 0),
    }[name]
    assert prompt.startswith(start) and answer and (not known or len(answer) == known)


def test_unknown_task_and_parameter(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="unknown task 'foo'; choose from acronym, greater-than, ioi"):
        load_task("foo", tokenizer)
    with pytest.raises(UsageError, match="task 'acronym' has no parameter 'template'; it takes letters"):
        load_task("acronym", tokenizer, template="all")
    with pytest.raises(UsageError, match="task 'ioi' has no parameter 'colour'; it takes template"):
        load_task("ioi", tokenizer, colour="red")
    with pytest.raises(UsageError, match="template is 'mine' for the task 'ioi'; choose from all, paper"):
        load_task("ioi", tokenizer, template="mine")


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_sizes_are_checked(size: Any) -> None:
    with pytest.raises(InputError, match="the test set cannot have"):
        SplitSizes(test=size)


def test_too_large_sets_name_the_maximum(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"'greater-than' has 30900 distinct prompts.*not 10000500"):
        load_task("greater-than", tokenizer, sizes=SplitSizes(test=10**7))


def test_every_prompt_can_be_drawn() -> None:
    pairs = draw_distinct(random.Random(0), [3, 0, 1, 5], 9, "toy")
    assert sorted(pairs) == [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]
    first = [stratum for stratum, _ in pairs[:6]]
    assert sorted(first[:3]) == [0, 2, 3] and sorted(first[3:5]) == [0, 3]  # in turn


def characters_tokenizer() -> PreTrainedTokenizerFast:
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>"]
    raw = RawTokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_inadequate_tokenizer_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=rf"this tokenizer cannot express the task '{name}': .* \d+ are needed"):
        load_task(name, characters_tokenizer())
