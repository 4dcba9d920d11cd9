"""Patching lines without an answer: which may go without, where they end up, and what is still asked of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from exporter.errors import InputError
from exporter.evidence.evaluate import evaluate_circuit
from exporter.job.options import Job
from exporter.loading.load import LanguageModel
from exporter.tasks import DEFAULT_SIZES, FILE_SIZES, DataFileError, SplitSizes, load_task, read_task_file
from exporter.tasks.dataset import Dataset

YES_NO = [" yes", " no"]
Lines = list[dict[str, Any]]
IDS = torch.tensor([[5, 6], [7, 8]])
HALF = torch.tensor([True, False])


def ask(name: str, n: int, *, first: int = 0, answered: bool = True) -> Lines:
    """Lines of a set, with an answer or without."""
    rows: Lines = [{"prompt": f"The number after {i} is", "split": name} for i in range(first, first + n)]
    return [row | {"answer": f" {i + 1}"} for i, row in enumerate(rows, first)] if answered else rows


def three_sets() -> Lines:
    """Enough lines of each set, all with an answer."""
    return ask("patching", 10) + ask("selection", 10, first=10) + ask("test", 10, first=20)


def without_sets(lines: Lines) -> Lines:
    return [{name: value for name, value in row.items() if name != "split"} for row in lines]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes lines and returns the file's path."""

    def write(lines: Lines | str, name: str = "my.jsonl") -> str:
        text = lines if isinstance(lines, str) else "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_prompt_without_an_answer_has_one_answer_position() -> None:
    data = Dataset(IDS, torch.tensor([[[1], [2]], [[-1], [-1]]]), labelled=HALF)
    assert data.counted.tolist() == [[True, True], [False, True]]
    assert data.known.tolist() == [[True, True], [False, False]]
    assert (data.n_unlabelled, data[1:].n_unlabelled, data.take(torch.tensor([0])).labelled) == (1, 1, None)
    assert torch.equal(data.take_labelled().input_ids, IDS[:1])
    assert Dataset(IDS, torch.tensor([1, 2]), labelled=torch.tensor([True, True])).labelled is None


def test_accuracy_is_not_asked_of_it() -> None:
    data = Dataset(IDS, torch.tensor([1, -1]), labelled=HALF)
    with pytest.raises(InputError, match="1 of 2 prompts have no right answer, and accuracy needs one of each; give"):
        data.is_answer(torch.tensor([1, 1]))
    with pytest.raises(InputError, match="1 of 2 prompts have no right answer"):
        evaluate_circuit(*[lambda ids, _mask, _steps: torch.zeros(len(ids), 1, 9)] * 2, data)


def test_without_choices_its_prediction_is_free() -> None:
    choices, logits = torch.tensor([[2, 3], [-1, -1]]), torch.tensor([9.0, 0, 1, 2]).expand(2, 1, 4)
    assert Dataset(IDS, torch.tensor([2, -1]), None, choices, HALF).predict(logits).tolist() == [[3], [0]]


@pytest.mark.parametrize(
    ("answers", "fields", "message"),
    [
        ([1, -1], {}, "each prompt needs at least one answer"),
        ([1, 2], {"labelled": HALF}, "answer_ids has answers of prompts that are not labelled; put -1 there"),
        ([-1, -1], {"labelled": HALF}, "each prompt needs at least one answer"),
        ([1, -1], {"labelled": HALF[:1]}, r"labelled must be bool and \(2,\), not \(1,\)"),
        ([1, -1], {"labelled": HALF.long()}, r"labelled must be bool and \(2,\)"),
        ([1, -1], {"labelled": [True, False]}, "labelled must be Tensor or None"),
        ([1, -1], {"labelled": HALF, "choice_ids": torch.tensor([[-1], [3]])}, "has no choice for some prompts"),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(answers: list[int], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(IDS, torch.tensor(answers), **fields)


def test_patching_lines_may_go_without(write: Callable[..., str], bundled: LanguageModel) -> None:
    lines = ask("patching", 20, first=40, answered=False) + three_sets()
    lines[0]["answer"] = None  # as good as none
    data = load_task(write(lines), bundled.tokenizer)
    assert (len(data.patching), data.patching.n_unlabelled, data.notes) == (30, 20, ())
    assert data.selection.labelled is data.test.labelled is None
    rows = "".join(f"{row['prompt']},{row.get('answer') or ''},{row['split']}\n" for row in lines)
    table = load_task(write(f"prompt,answer,split\n{rows}", "my.csv"), bundled.tokenizer)
    assert torch.equal(table.patching.input_ids, data.patching.input_ids)
    assert torch.equal(table.patching.is_labelled, data.patching.is_labelled)


def test_beside_longer_answers_it_is_learnt_from_behind_the_prompt(
    write: Callable[..., str], bundled: LanguageModel
) -> None:
    lines = ask("patching", 5, first=40, answered=False)
    lines += [row | {"answer": f"{row['answer']} apples"} for row in three_sets()]
    data = load_task(write(lines), bundled.tokenizer).patching
    row = int((~data.is_labelled).nonzero()[0])
    assert data.n_steps == 2 and data.counted[row].tolist() == [False, True]
    assert bundled.tokenizer.decode(data.input_ids[row, -1:].tolist()) == " is"


@pytest.mark.parametrize("some", [True, False])
def test_it_may_have_choices_or_none(some: bool, write: Callable[..., str], bundled: LanguageModel) -> None:
    more = {"choices": YES_NO} if some else {}
    lines = [row | more for row in ask("patching", 10, first=40, answered=False)]
    lines += [row | {"answer": YES_NO[i % 2], "choices": YES_NO} for i, row in enumerate(three_sets()[10:])]
    data = load_task(write(lines), bundled.tokenizer)  # no patching line has an answer
    assert data.patching.n_unlabelled == 10 and data.selection.choice_ids is not None
    assert data.patching.choice_ids is not None and (data.patching.choice_ids >= 0).all() == some


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"split": "test"}, "line 1: no 'answer': the set test needs one, and only patching lines may go without"),
        ({"split": "ood"}, "line 1: no 'answer': the set ood needs one"),
        ({"split": "tset"}, "line 1: split is 'tset'; choose from"),
        ({"split": None}, "line 1: no split, but line 2 has one; give it to all"),
        ({"distractors": [" 3"]}, "line 1: distractors, but no 'answer'; give the answer, too, or all choices"),
        ({"choices": YES_NO}, "line 2: no choices, but line 1 has some; give them to every line, or to none"),
        ({"prompt": "The number after 25 is"}, "line 27: the prompt of line 1 again, .*: a leak; take one of them out"),
        ({"answer": " "}, "line 1: answer is empty; give a text"),
    ],
)
def test_what_it_still_needs(
    line: dict[str, Any], message: str, write: Callable[..., str], bundled: LanguageModel
) -> None:
    first = {"prompt": "The number after 99 is", "split": "patching"} | line
    with pytest.raises(DataFileError, match=message):
        load_task(write([first, *three_sets()]), bundled.tokenizer)


def test_where_no_sets_are_named_it_is_for_patching(write: Callable[..., str], bundled: LanguageModel) -> None:
    """The others are divided as they would be alone."""
    labelled, more = without_sets(ask("", 40)), without_sets(ask("", 30, first=50, answered=False))
    data = load_task(write(labelled + more), bundled.tokenizer)
    assert (len(data.patching), len(data.selection), len(data.test)) == (40, 10, 20)
    assert data.patching.n_unlabelled == 30
    said = (
        "lines 41, 42, 43, 44 and 26 more have no answer: used for patching alone, with the dense model as the teacher"
    )
    assert data.notes == (said,)
    with pytest.raises(DataFileError, match="the selection set needs at least 8 prompts, 3 different prompts with an"):
        load_task(write(more + labelled[:3]), bundled.tokenizer)


def test_what_is_like_it_goes_along(write: Callable[..., str], bundled: LanguageModel) -> None:
    labelled = without_sets(ask("", 40))
    shouted: Lines = [{"prompt": row["prompt"].upper()} for row in labelled[:6]]
    for seed in range(4):
        found = read_task_file(write(labelled + shouted), bundled.tokenizer, seed=seed, sizes=FILE_SIZES)
        patching = {example.record.line for example in found.examples["patching"]}
        assert patching >= {*range(1, 7), *range(41, 47)}
        assert (len(found.examples["selection"]), len(found.examples["test"])) == (8, 18)
        assert not [pair for pair in found.near if pair.leaks]


def test_of_a_prompt_that_stands_there_twice_the_one_with_an_answer_stays(
    write: Callable[..., str], bundled: LanguageModel
) -> None:
    again = ask("patching", 3, answered=False)
    lines = [*again[:1], *three_sets(), *again]
    found = read_task_file(write(lines), bundled.tokenizer, sizes=FILE_SIZES)
    assert [(other.record.line, kept.record.line) for other, kept in found.repeated] == [
        (1, 2),
        (32, 2),
        (33, 3),
        (34, 4),
    ]
    assert found.data.patching.n_unlabelled == 0 and len(found.data.patching) == 10


def test_all_patching_lines_are_used(
    write: Callable[..., str], bundled: LanguageModel, run: Run, make_checkpoint: Callable[..., Path]
) -> None:
    lines = ask("patching", 500, answered=False) + ask("selection", 260, first=500) + ask("test", 10, first=800)
    path = write(lines + ask("ood:far", 210, first=820))
    data = load_task(path, bundled.tokenizer)
    assert (len(data.patching), len(data.selection)) == (500, 250)
    cut = "of 260 lines of the set selection, 250 are used; --selection-prompts takes more"
    assert data.notes == (cut, "of 210 lines of the set ood:far, 200 are used")
    few = load_task(path, bundled.tokenizer, sizes=SplitSizes(patching=100, selection=260, ood=210))
    assert len(few.patching) == 100
    assert few.notes == ("of 500 lines of the set patching, 100 are used; --patching-prompts takes more",)
    job = ("--task", path, "--model", make_checkpoint(), "--dry-run", "--force", "--json")
    for options, n in (((), 500), (("--preset", "deploy"), 500), (("--patching-prompts", "100"), 100)):
        code, out, err = run.all(*job, *options)
        assert (code, json.loads(out)["prompts"]["patching"]) == (0, n)
        assert f"warning: {cut}" in err
    assert Job("acronym", None).sizes is None and DEFAULT_SIZES.patching == 250


def test_lines_beyond_the_sets_are_told_of(write: Callable[..., str], bundled: LanguageModel) -> None:
    sizes = SplitSizes(patching=20, selection=10, test=12)
    data = load_task(write(without_sets(ask("", 60))), bundled.tokenizer, sizes=sizes)
    assert len(data.patching) == 15
    assert [note.split("; ")[0] for note in data.notes] == [
        "of 60 lines 37 are used (patching 15, selection 10, test 12)"
    ]


def test_check_data_counts_them(write: Callable[..., str], run: Run, make_checkpoint: Callable[..., Path]) -> None:
    rows = [row | {"answer": YES_NO[i % 2], "choices": YES_NO} for i, row in enumerate(three_sets())]
    lines = rows + ask("patching", 7, first=40, answered=False)
    found = json.loads(run.succeeds("check-data", write(lines), "--model", make_checkpoint(), "--json"))
    assert found["unlabelled"] == 7 and found["sets"]["patching"] == 17
    assert found["answers"] == {"one of 2 choices": 30, "none": 7}
    alone = json.loads(run.succeeds("check-data", write(rows), "--model", make_checkpoint(), "--json"))
    assert found["accuracy"] == alone["accuracy"] and alone["unlabelled"] == 0
    none = lines[10:] + ask("patching", 8, first=60, answered=False)
    text = run.succeeds("check-data", write(none), "--model", make_checkpoint())
    assert "15 (15 without an answer)" in text and "none: 15" in text


@pytest.mark.parametrize("teacher", ["labels", "both"])
def test_right_answers_cannot_be_learnt_where_there_are_none(
    teacher: str, write: Callable[..., str], run: Run, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(ask("patching", 12, first=40, answered=False) + three_sets()[10:])
    job = ("--task", path, "--model", make_checkpoint(), "--preset", "deploy", "--out", tmp_path / "m.onnx", "--force")
    said = (
        f"--teacher {teacher} learns right answers, and none of the 12 patching prompts has one; give some of them an"
    )
    run.fails(3, said, *job, "--teacher", teacher)
