"""Prompts as token ids, with the tokens that count as right answers.

A `Dataset` is what every later stage reads. It knows nothing of tokenizers or tasks, so that a user
can build one straight from tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Prompts of one length and their answers; the answer position is the last.

    input_ids: (prompt, pos) int64. answer_ids: (prompt,) or (prompt, answer) int64; several right
    answers for one prompt stand in one row, shorter rows are padded with -1. Raises InputError when
    shapes or values do not fit.
    """

    input_ids: Tensor
    answer_ids: Tensor

    def __post_init__(self) -> None:
        ids, answers = self.input_ids, self.answer_ids
        if ids.ndim != 2 or 0 in ids.shape:
            raise InputError(f"input_ids must be (prompt, pos) and not empty, not {tuple(ids.shape)}")
        if answers.ndim not in (1, 2) or answers.shape[0] != ids.shape[0] or 0 in answers.shape:
            raise InputError(
                f"answer_ids must be (prompt,) or (prompt, answer) for {ids.shape[0]} prompts, "
                f"not {tuple(answers.shape)}"
            )
        if ids.dtype != torch.int64 or answers.dtype != torch.int64:
            raise InputError(f"token ids must be int64, not {ids.dtype} and {answers.dtype}")
        if answers.ndim == 1:
            answers = answers[:, None]  # (prompt, 1)
            object.__setattr__(self, "answer_ids", answers)
        if ids.min() < 0 or answers.max(dim=1).values.min() < 0:
            raise InputError("token ids start at 0, and each prompt needs at least one answer")

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens in each prompt."""
        return self.input_ids.shape[1]

    def __getitem__(self, rows: slice) -> Dataset:
        """Some of the prompts, as a view."""
        return Dataset(self.input_ids[rows], self.answer_ids[rows])

    def is_answer(self, token_ids: Tensor) -> Tensor:
        """Whether each predicted token, (prompt,), is among its prompt's answers; (prompt,) bool."""
        return (self.answer_ids == token_ids[:, None]).any(dim=1)
