"""Prompts as token ids, with the tokens that count as right answers.

A `Dataset` is what every later stage reads. It knows nothing of tokenizers or tasks, so that a user
can build one straight from tensors. Shorter prompts are padded on the left, so that the answer
position is the last one whatever a prompt's length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporter.checks import require_type
from exporter.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Prompts and their answers, which stand at the last positions.

    input_ids: (prompt, pos) int64. An answer of several tokens is predicted with the right tokens before
    it in place (teacher forcing): a prompt with S of them holds the first S - 1 at its end.
    answer_ids: (prompt,), (prompt, alternative) or (prompt, step, alternative) int64, -1 where there is
    none; step s of S is predicted at position pos - S + s, and a prompt with fewer steps leaves its first
    ones empty. mask: (prompt, pos) bool, False at padding, which stands on the left; None without padding.
    choice_ids: (prompt, choice) int64, -1 where there is none: where given, the answer is chosen among
    them and not from the whole vocabulary. labelled: (prompt,) bool, False where nobody knows the right
    answer, and answer_ids has none: such a prompt has one answer position, the last, and may go without
    choices; None where all answers are known. Raises InputError when shapes or values do not fit.
    """

    input_ids: Tensor
    answer_ids: Tensor
    mask: Tensor | None = None
    choice_ids: Tensor | None = None
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("input_ids", "answer_ids"):
            require_type(name, getattr(self, name), Tensor)
        for name in ("mask", "choice_ids", "labelled"):
            require_type(name, getattr(self, name), Tensor, type(None))
        ids, answers = self.input_ids, self.answer_ids
        if ids.ndim != 2 or 0 in ids.shape:
            raise InputError(f"input_ids must be (prompt, pos) and not empty, not {tuple(ids.shape)}")
        if answers.ndim not in (1, 2, 3) or answers.shape[0] != ids.shape[0] or 0 in answers.shape:
            raise InputError(
                f"answer_ids must be (prompt,), (prompt, alternative) or (prompt, step, alternative) for "
                f"{ids.shape[0]} prompts, not {tuple(answers.shape)}"
            )
        if ids.dtype != torch.int64 or answers.dtype != torch.int64:
            raise InputError(f"token ids must be int64, not {ids.dtype} and {answers.dtype}")
        if answers.ndim == 1:
            object.__setattr__(self, "answer_ids", answers[:, None])  # (prompt, 1)
        if self.n_steps > self.length:
            raise InputError(f"{self.n_steps} answer positions do not fit into prompts of {self.length} tokens")
        if self.labelled is not None:
            self._check_labelled(self.labelled)
        if min(ids.min(), answers.min() + 1) < 0 or not self.counted[:, -1].all():
            raise InputError("token ids start at 0 (-1: no answer), and each prompt needs at least one answer")
        if self.mask is not None:
            self._check_mask(self.mask)
        if self.choice_ids is not None:
            self._check_choices(self.choice_ids)

    def _check_mask(self, mask: Tensor) -> None:
        if mask.shape != self.input_ids.shape or mask.dtype != torch.bool:
            raise InputError(f"mask must be bool and {tuple(self.input_ids.shape)}, not {tuple(mask.shape)}")
        if not mask[:, -1].all() or (mask[:, :-1] & ~mask[:, 1:]).any():
            raise InputError("padding must stand on the left of each prompt, and leave at least one token")
        if mask.all():
            object.__setattr__(self, "mask", None)

    def _check_choices(self, choices: Tensor) -> None:
        if choices.ndim != 2 or len(choices) != len(self) or choices.dtype != torch.int64:
            raise InputError(f"choice_ids must be (prompt, choice) int64, not {tuple(choices.shape)}")
        if choices.numel() == 0 or not ((choices >= 0).any(dim=1) | ~self.is_labelled).all():
            raise InputError("choice_ids has no choice for some prompts; give each some, or leave choice_ids out")

    def _check_labelled(self, labelled: Tensor) -> None:
        if labelled.shape != (len(self),) or labelled.dtype != torch.bool:
            raise InputError(f"labelled must be bool and ({len(self)},), not {tuple(labelled.shape)}")
        if self.known[~labelled].any():
            raise InputError("answer_ids has answers of prompts that are not labelled; put -1 there, or label them")
        if labelled.all():
            object.__setattr__(self, "labelled", None)

    def require_known(self, n_tokens: int) -> None:
        """Raise InputError where a prompt, an answer or a choice has a token that a model of so many does not know."""
        for name in ("input_ids", "answer_ids", "choice_ids"):
            ids = getattr(self, name)
            if ids is not None and ids.max() >= n_tokens:
                raise InputError(f"{name} has token {int(ids.max())}, and this model's go from 0 to {n_tokens - 1}")

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens in the longest prompt."""
        return self.input_ids.shape[1]

    @property
    def n_steps(self) -> int:
        """Answer positions: the tokens of the longest answer."""
        return self.steps.shape[1]

    @property
    def steps(self) -> Tensor:
        """The answers by answer position: (prompt, step, alternative)."""
        return self.answer_ids if self.answer_ids.ndim == 3 else self.answer_ids[:, None]

    @property
    def known(self) -> Tensor:
        """At which of the answer positions a right token is known: (prompt, step) bool."""
        return (self.steps >= 0).any(dim=-1)

    @property
    def counted(self) -> Tensor:
        """Which of the answer positions each prompt has, its answer being known or not: (prompt, step) bool."""
        if self.labelled is None:
            return self.known
        is_last = torch.arange(self.n_steps) == self.n_steps - 1
        return self.known | (~self.labelled[:, None] & is_last)

    @property
    def is_labelled(self) -> Tensor:
        """Which prompts have a right answer: (prompt,) bool."""
        return (
            torch.ones(len(self), dtype=torch.bool, device=self.input_ids.device)
            if self.labelled is None
            else self.labelled
        )

    @property
    def n_unlabelled(self) -> int:
        """How many prompts have no right answer."""
        return int((~self.is_labelled).sum())

    def count_shared_positions(self) -> int:
        """How many positions open every prompt alike; an answer position is never among them."""
        if self.mask is not None:
            return 0
        return count_shared(self.input_ids[:, : -self.n_steps])

    def __getitem__(self, rows: slice) -> Dataset:
        """Some of the prompts, as a view."""
        return self._select(rows)

    def take(self, rows: Tensor) -> Dataset:
        """The prompts of some rows, (prompt,) int64, in their order, as a copy."""
        return self._select(rows)

    def take_labelled(self) -> Dataset:
        """The prompts whose right answer is known. Raises InputError where there is none."""
        return self.take(self.is_labelled.nonzero()[:, 0])

    def _select(self, rows: slice | Tensor) -> Dataset:
        mask, choices, labelled = self.mask, self.choice_ids, self.labelled
        return Dataset(
            self.input_ids[rows],
            self.answer_ids[rows],
            mask=None if mask is None else mask[rows],
            choice_ids=None if choices is None else choices[rows],
            labelled=None if labelled is None else labelled[rows],
        )

    def to(self, device: torch.device | str) -> Dataset:
        """The prompts on a device; themselves if they are there already."""
        if self.input_ids.device == torch.device(device):
            return self
        others = (self.mask, self.choice_ids, self.labelled)
        moved = [None if tensor is None else tensor.to(device) for tensor in others]
        return Dataset(self.input_ids.to(device), self.answer_ids.to(device), *moved)

    def split(self, size: int) -> list[Dataset]:
        """The prompts in parts of at most `size`."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def order_by_length(self) -> Tensor:
        """Rows, (prompt,) int64, from the shortest prompt to the longest: in parts, they need less padding."""
        if self.mask is None:
            return torch.arange(len(self))
        return self.mask.sum(dim=1).argsort(stable=True).cpu()  # rows index tensors of any device

    def shuffle_answers(self, generator: torch.Generator) -> Dataset:
        """The same prompts with answers that have nothing to do with them, for controls; those without one stay so.

        Answers are permuted among the prompts with as many answer tokens, whose tokens before the last go along. Where
        labelled prompts differ in their choices, each draws as many right answers as it had from its own.
        """
        rows = self.is_labelled.nonzero()[:, 0].cpu()
        if self.choice_ids is not None and _differ(self.choice_ids[rows].sort(dim=1).values):
            return replace(self, answer_ids=_draw_answers(self, generator))
        source = torch.arange(len(self))
        n_tokens = self.known.sum(dim=1).cpu()
        for n in n_tokens[rows].unique().tolist():
            group = rows[n_tokens[rows] == n]
            source[group] = group[torch.randperm(len(group), generator=generator)]
        source = source.to(self.input_ids.device)
        ids, is_answer = self.input_ids.clone(), self.known[:, :-1]  # (prompt, step - 1): where a token is read
        tail = ids[:, self.length - self.n_steps + 1 :]
        tail.copy_(torch.where(is_answer, tail[source], tail))
        return replace(self, input_ids=ids, answer_ids=self.answer_ids[source])

    def predict(self, logits: Tensor) -> Tensor:
        """The likeliest token at each answer position, of the choices where there are some.

        logits: (prompt, step, vocab). Returns (prompt, step) int64.
        """
        if self.choice_ids is None:
            return logits.argmax(-1)
        choices = self.choice_ids[:, None].expand(-1, logits.shape[1], -1)  # (prompt, step, choice)
        among = logits.gather(-1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf)
        chosen = choices.gather(-1, among.argmax(-1, keepdim=True))[..., 0]  # (prompt, step)
        return torch.where(chosen < 0, logits.argmax(-1), chosen)  # a prompt without answer may have no choices

    def is_answer(self, token_ids: Tensor) -> Tensor:
        """Whether each prompt's predicted tokens, (prompt,) or (prompt, step), are all right; (prompt,) bool.

        Raises InputError where the right answer of some prompt is not known.
        """
        if self.labelled is not None:
            raise InputError(
                f"{self.n_unlabelled} of {len(self)} prompts have no right answer, and accuracy needs one of each; "
                "give their answers, or leave them out"
            )
        right = (self.steps == token_ids.view(len(self), -1, 1)).any(dim=-1)  # (prompt, step)
        return (right | ~self.counted).all(dim=1)


def count_shared(input_ids: Tensor) -> int:
    """How many positions from the first on have one token in all of some (prompt, pos) prompts."""
    same = (input_ids == input_ids[:1]).all(dim=0)  # (pos,)
    return int(same.long().cumprod(0).sum())


def _differ(rows: Tensor) -> bool:
    return bool((rows != rows[:1]).any())


def _draw_answers(dataset: Dataset, generator: torch.Generator) -> Tensor:
    """Answers among each prompt's own choices, as many as are right: shaped as `answer_ids`, with one answer token."""
    assert dataset.choice_ids is not None
    answers = dataset.answer_ids.clone()
    for row in dataset.is_labelled.nonzero()[:, 0].tolist():
        choices = dataset.choice_ids[row][dataset.choice_ids[row] >= 0]
        right = answers[row] >= 0
        order = torch.randperm(len(choices), generator=generator)[: int(right.sum())]
        answers[row][right] = choices[order.to(choices.device)]
    return answers
