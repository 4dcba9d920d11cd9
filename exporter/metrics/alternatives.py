"""Logits of the right answers and of the wrong ones, for metrics that take several right answers as one event."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.tasks.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Logits at each answer position, float64, minus infinity where there is none.

    right: (prompt, step, right answer). wrong: (prompt, step, vocab or choice).
    """

    right: Tensor
    wrong: Tensor

    @cached_property
    def log_right(self) -> Tensor:
        """The log-sum-exp of right answers: (prompt, step)."""
        return self.right.logsumexp(dim=-1)

    @cached_property
    def log_wrong(self) -> Tensor:
        """The log-sum-exp of wrong answers: (prompt, step)."""
        return self.wrong.logsumexp(dim=-1)

    @cached_property
    def log_total(self) -> Tensor:
        """The log-sum-exp of both: (prompt, step)."""
        return self.log_right.logaddexp(self.log_wrong)


def split_vocabulary(prompts: Dataset, logits: Tensor) -> Alternatives:
    """Right answers against all other tokens, of logits (prompt, step, vocab).

    Raises InputError: a prompt has no right answer.
    """
    right, logits = find_right(prompts), logits.double()
    # an empty place repeats a right token, so that token 0 is not taken out for it
    ids = torch.where(right < 0, right.amax(dim=-1, keepdim=True), right).clamp(min=0)
    return Alternatives(_take(logits, right), logits.scatter(-1, ids, -torch.inf))


def split_choices(prompts: Dataset, logits: Tensor) -> Alternatives:
    """Right answers against wrong choices, of logits (prompt, step, vocab) and a set that has choices.

    Raises InputError: a prompt has no right answer.
    """
    assert prompts.choice_ids is not None
    right, logits = find_right(prompts), logits.double()
    choices = _drop_repeated(prompts.choice_ids)[:, None].expand(-1, prompts.n_steps, -1)  # (prompt, step, choice)
    is_right = (choices[..., None] == right[..., None, :]).any(dim=-1)
    return Alternatives(_take(logits, right), _take(logits, choices.masked_fill(is_right, -1)))


def find_right(prompts: Dataset) -> Tensor:
    """Each right token once, -1 where there is none: (prompt, step, alternative) int64.

    Raises InputError: a prompt has no right answer.
    """
    if prompts.labelled is not None:
        raise InputError(
            f"{prompts.n_unlabelled} of {len(prompts)} prompts have no right answer, and this metric needs one of "
            "each; give their answers, or leave them out"
        )
    return _drop_repeated(prompts.steps)


def _drop_repeated(ids: Tensor) -> Tensor:
    """Token ids in descending order, each once, -1 in place of repetitions: (..., id) to (..., id)."""
    ids = ids.sort(dim=-1, descending=True).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    return ids.masked_fill(again, -1)


def _take(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits of some tokens, minus infinity for -1: (prompt, step, vocab), (prompt, step, k) to (prompt, step, k)."""
    return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
