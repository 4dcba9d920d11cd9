"""Lessons: prompts with what the dense model says at their answer positions, and which of them a teacher is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.network.model import CircuitModel
from exporter.network.step import run_to_last
from exporter.search.shortlist import Shortlist, make_shortlist
from exporter.search.variations import join
from exporter.tasks.dataset import Dataset

Teacher = Literal["dense", "labels", "both"]

ASIDE = 0.1  # of the prompts
LEAST_ASIDE, MOST_ASIDE = 8, 384
_CHUNK = 64
_HELD = 2**27  # bytes of log-probabilities
_POOL = 16  # batches that prompts of like length are gathered from


@dataclass(frozen=True, eq=False)
class Lessons:
    """Prompts with what the dense model says at their answer positions.

    normed: its residual there after the final norm, (prompt, step, d_model), from which its logits follow. kept: its
    log-probabilities, (prompt, step, vocab), where they are held; of a shortlist's entries if that is the vocabulary.
    """

    prompts: Dataset
    normed: Tensor
    W_U: Tensor
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Lessons:
        """Some prompts."""
        return Lessons(
            self.prompts.take(rows), self.normed[rows], self.W_U, None if self.kept is None else self.kept[rows]
        )

    def join(self, other: Lessons) -> Lessons:
        """These, and then others of the same model."""
        return Lessons(join(self.prompts, other.prompts), torch.cat([self.normed, other.normed]), self.W_U)

    def hold(self) -> Lessons:
        """The same with the log-probabilities held, for what is looked at often; not where they are large."""
        n_bytes = self.normed[..., 0].numel() * len(self.W_U) * self.normed.element_size()
        if self.kept is not None or n_bytes > _HELD:
            return self
        return replace(self, kept=torch.cat([part.log_p for part in self.split(_CHUNK)]))

    def shorten(self) -> tuple[Lessons, Shortlist]:
        """The same over a shorter vocabulary, with the log-probabilities held."""
        parts = self.split(_CHUNK)
        likeliest = torch.stack([part.log_p.flatten(0, 1).amax(0) for part in parts]).amax(0).exp()
        shortlist = make_shortlist(self.prompts, likeliest, self.W_U)
        kept = torch.cat([shortlist.shorten(part.log_p.exp()) for part in parts])
        return replace(self, prompts=shortlist.translate(self.prompts), kept=kept), shortlist

    def split(self, size: int) -> list[Lessons]:
        """All prompts, in parts."""
        return [self.take(rows) for rows in torch.arange(len(self)).split(size)]

    @property
    def logits(self) -> Tensor:
        """Logits of the dense model, (prompt, step, vocab): its log-probabilities, where they are held."""
        return self.normed @ self.W_U.T if self.kept is None else self.kept

    @property
    def log_p(self) -> Tensor:
        """Log-probabilities of the dense model: (prompt, step, vocab)."""
        return self.logits.log_softmax(-1) if self.kept is None else self.kept

    def draw_tokens(self, generator: torch.Generator) -> Tensor:
        """A token for each answer position, drawn from the dense model's distribution: (prompt, step)."""
        p = self.log_p.exp()
        drawn = torch.multinomial(p.flatten(0, 1).cpu(), 1, generator=generator)
        return drawn.view(p.shape[:2]).to(p.device)

    def sort(self) -> Lessons:
        """The same from the shortest prompt to the longest."""
        return self.take(self.prompts.order_by_length())

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Lessons]:
        """Batches without end, each prompt at most once an epoch; prompts of like length go together."""
        size = min(size, len(self))
        while True:
            order = torch.randperm(len(self), generator=generator)
            for pool in order.split(_POOL * size):
                batches = self.prompts.take(pool).order_by_length().split(size)
                batches = sorted(batches, key=lambda places: int(places[0]))  # as random as the pool's own order
                yield from (self.take(pool[places]) for places in batches if len(places) == size)


def require_labels(prompts: Dataset, teacher: Teacher) -> None:
    """Raise InputError where right answers are to be learnt, and no prompt has one."""
    if teacher != "dense" and prompts.n_unlabelled == len(prompts):
        raise InputError(
            f"--teacher {teacher} learns right answers, and none of the {len(prompts)} patching prompts has one; give "
            "some of them an answer, or take --teacher dense"
        )


def choose_lessons(lessons: Lessons, teacher: Teacher) -> Lessons:
    """Those that a teacher has something to say of: right answers alone teach nothing about prompts without one.

    Raises InputError where there are none.
    """
    require_labels(lessons.prompts, teacher)
    labelled = lessons.prompts.labelled
    return lessons if teacher != "labels" or labelled is None else lessons.take(labelled.nonzero()[:, 0])


@torch.no_grad()
def ask_dense(dense: CircuitModel, prompts: Dataset, *, normed: Tensor | None = None) -> Lessons:
    """Run the dense model on prompts, once; not at all where somebody has its `normed` residuals already."""
    if normed is not None:
        return Lessons(prompts, normed.clone(), dense.W_U)
    found = []
    for part in prompts.split(_CHUNK):
        at = dense.place(part.input_ids, part.mask).crop(part.n_steps)
        x = run_to_last(dense.steps, dense.embed(part.input_ids, at), at, n_last=part.n_steps)
        found.append(dense.final_norm(x.to(dense.W_U.device)))
    return Lessons(prompts, torch.cat(found), dense.W_U)


def ask_sorted(dense: CircuitModel, prompts: Dataset) -> Lessons:
    """`ask_dense`, the shortest prompts first, for its time; returned in their own order."""
    rows = prompts.order_by_length()
    return ask_dense(dense, prompts.take(rows)).take(rows.argsort())


def count_aside(n: int) -> int:
    """How many of n prompts are kept aside: those that say when to stop healing; 0 where they would be too few."""
    aside = min(MOST_ASIDE, int(n * ASIDE))
    return aside if aside >= LEAST_ASIDE else 0


def keep_aside(lessons: Lessons, generator: torch.Generator) -> tuple[Lessons, Lessons | None]:
    """The lessons to learn from, in random order, and those that are kept aside, if any."""
    rows, n = torch.randperm(len(lessons), generator=generator), count_aside(len(lessons))
    return (lessons.take(rows[n:]), lessons.take(rows[:n]).sort()) if n else (lessons, None)
