"""Datasets from tensors: shapes, padding of answers, and what is refused."""

from __future__ import annotations

import pytest
import torch

from exporter.dataset import Dataset
from exporter.errors import InputError


def test_one_answer_or_several() -> None:
    ids = torch.tensor([[5, 6], [7, 8]])
    single = Dataset(ids, torch.tensor([1, 2]))
    assert single.is_answer(torch.tensor([1, 1])).tolist() == [True, False]
    several = Dataset(ids, torch.tensor([[1, -1], [2, 3]]))
    assert several.is_answer(torch.tensor([1, 3])).tolist() == [True, True]
    assert several.is_answer(torch.tensor([2, 1])).tolist() == [False, False]
    assert (len(single), single.length, len(single[:1])) == (2, 2, 1)


@pytest.mark.parametrize(
    ("ids", "answers", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "input_ids must be"),
        (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), "not empty"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "for 2 prompts"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), "must be int64"),
        (-torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "start at 0"),
        (torch.zeros(2, 3, dtype=torch.int64), -torch.ones(2, 2, dtype=torch.int64), "at least one answer"),
    ],
)
def test_what_does_not_fit_is_refused(ids: torch.Tensor, answers: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(ids, answers)
