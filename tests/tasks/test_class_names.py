"""The names of a task's classes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from exporter.errors import InputError
from exporter.tasks import TaskData
from exporter.tasks.classes import name_classes
from exporter.tasks.dataset import Dataset

TEXTS = {1: " yes", 2: "no", 3: " no", 4: "\n", 5: "\ufffd", 6: "\ufffd", 7: " maybe "}


@dataclass
class Decoding:
    """A tokenizer that decodes some tokens."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return []

    def decode(self, token_ids: list[int]) -> str:
        return "".join(TEXTS[token] for token in token_ids)


def make_data(answers: list[int], *, steps: int = 1) -> TaskData:
    ids = torch.zeros(len(answers), 4, dtype=torch.int64)
    right = torch.tensor(answers)
    given = right if steps == 1 else right[:, None, None].expand(-1, steps, -1).contiguous()
    data = Dataset(ids, given)
    return TaskData("t", {}, data, data, data, {})


def test_words_are_names_and_what_is_ambiguous_keeps_its_spaces() -> None:
    names = name_classes(make_data(sorted(TEXTS)), Decoding())
    assert names == ("yes", "'no'", "' no'", "'\\n'", "token 5", "token 6", "maybe")


def test_one_answer_or_several_tokens_are_no_classes() -> None:
    with pytest.raises(InputError, match="needs two answers or more, and t has one"):
        name_classes(make_data([1, 1]), Decoding())
    with pytest.raises(InputError, match="answers of one token, and those of t have up to 2"):
        name_classes(make_data([1, 2], steps=2), Decoding())
