"""Datasets from tensors: padding, answers of several tokens, choices, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exporter.errors import InputError
from exporter.tasks.dataset import Dataset

IDS = torch.tensor([[0, 5, 6], [7, 8, 9]])
MASK = torch.tensor([[False, True, True], [True, True, True]])
LEFT_EMPTY = torch.tensor([[[-1, -1], [3, 4]], [[1, -1], [2, -1]]])  # (prompt, step, alternative)


def test_one_answer_or_several() -> None:
    ids = torch.tensor([[5, 6], [7, 8]])
    single = Dataset(ids, torch.tensor([1, 2]))
    assert single.is_answer(torch.tensor([1, 1])).tolist() == [True, False]
    several = Dataset(ids, torch.tensor([[1, -1], [2, 3]]))
    assert several.is_answer(torch.tensor([1, 3])).tolist() == [True, True]
    assert several.is_answer(torch.tensor([2, 1])).tolist() == [False, False]
    assert (len(single), single.length, len(single[:1])) == (2, 2, 1)


def test_padding_stands_on_the_left() -> None:
    data = Dataset(IDS, torch.tensor([1, 2]), MASK)
    assert data.mask is not None and torch.equal(data.mask, MASK)
    assert Dataset(IDS, torch.tensor([1, 2]), torch.ones_like(MASK)).mask is None
    assert data[1:].mask is None and data[:1].mask is not None


def test_an_answer_of_several_tokens_is_right_when_all_are() -> None:
    data = Dataset(IDS, LEFT_EMPTY)
    assert data.n_steps == 2 and data.steps.shape == (2, 2, 2)
    assert data.counted.tolist() == [[False, True], [True, True]]
    assert data.is_answer(torch.tensor([[9, 4], [1, 2]])).tolist() == [True, True]
    assert data.is_answer(torch.tensor([[-1, 9], [1, 3]])).tolist() == [False, False]
    assert data.is_answer(torch.tensor([[9, 3], [2, 2]])).tolist() == [True, False]
    assert Dataset(IDS, torch.tensor([1, 2])).steps.shape == (2, 1, 1)
    assert Dataset(IDS, torch.tensor([1, 2])).counted.tolist() == [[True], [True]]


def test_predictions_are_the_likeliest_token_or_choice() -> None:
    logits = torch.tensor([[[0.0, 3.0, 1.0, 2.0]], [[9.0, 0.0, 2.0, 1.0]]])  # (prompt, step, vocab)
    answers = torch.tensor([1, 2])
    assert Dataset(IDS, answers).predict(logits).tolist() == [[1], [0]]
    choices = Dataset(IDS, answers, choice_ids=torch.tensor([[2, 3, -1], [1, 2, 3]]))
    assert choices.predict(logits).tolist() == [[3], [2]]
    assert choices.is_answer(choices.predict(logits)).tolist() == [False, True]


def test_parts_hold_every_prompt_once() -> None:
    data = Dataset(IDS.repeat(3, 1), LEFT_EMPTY.repeat(3, 1, 1), MASK.repeat(3, 1), torch.arange(12).view(6, 2))
    parts = data.split(4)
    assert [len(part) for part in parts] == [4, 2]
    for name in ("input_ids", "answer_ids", "choice_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(data, name))
    assert torch.equal(data[4:].input_ids, data.input_ids[4:])


@pytest.mark.parametrize(
    ("ids", "answers", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "input_ids must be"),
        (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), "not empty"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "for 2 prompts"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), "must be int64"),
        (-torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "start at 0"),
        (torch.zeros(2, 3, dtype=torch.int64), -torch.ones(2, 2, dtype=torch.int64), "at least one answer"),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            torch.zeros(2, 4, 1, dtype=torch.int64),
            "4 answer positions do not fit",
        ),
        (torch.zeros(2, 3, dtype=torch.int64), LEFT_EMPTY.flip(1), "at least one answer"),
    ],
)
def test_what_does_not_fit_is_refused(ids: torch.Tensor, answers: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(ids, answers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": MASK.flip(1)}, "padding must stand on the left"),
        ({"mask": torch.zeros_like(MASK)}, "leave at least one token"),
        ({"mask": MASK[:, :2]}, "mask must be bool"),
        ({"mask": MASK.long()}, "mask must be bool"),
        ({"choice_ids": torch.tensor([1, 2])}, "choice_ids must be"),
        ({"choice_ids": torch.tensor([[1, 2]])}, "choice_ids must be"),
        ({"choice_ids": torch.tensor([[1.0], [2.0]])}, "choice_ids must be"),
    ],
)
def test_a_mask_or_choices_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(IDS, torch.tensor([1, 2]), **fields)
