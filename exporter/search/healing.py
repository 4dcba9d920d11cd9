"""Healing: what stays learns to answer as the teacher does.

The survivors' projections and the constants of the steps are trained; embeddings, norms and unembedding are not. The
loss is KL(teacher || circuit) at the answer positions, over the whole vocabulary; with labels, the negative log-
likelihood of the right answers, among the choices where a prompt has some. Each is a mean over the answer positions
that it is about: those of prompts without a right answer teach nothing but KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.step import run_to_last
from exporter.search.gates import trained
from exporter.search.lessons import Lessons, Teacher
from exporter.search.memory import LearningPlan
from exporter.search.ranks import SOLO, Ranks
from exporter.search.shortlist import SAMPLED_TO_JUDGE, Shortlist
from exporter.tasks.dataset import Dataset

Heal = Literal["none", "refit", "distil"]
Voice = Teacher | Literal["tutor"]
"""Whom a network is healed after: the search's teacher, or a larger network that has learnt from it."""

LEARNING_RATE = 0.3  # over d_model: wider networks take smaller steps (Yang et al., arXiv 2203.03466)
WARM_UP = 10  # steps
BATCH = 32  # prompts in a step
CLIP = 1.0  # of the gradient's norm
HARMLESS = 0.005  # nats: nearer to the teacher, nothing is left to learn
USEFUL = 0.02  # of the loss: what is better by less is no progress
BESIDE_LABELS = 0.1  # the weight of KL where right answers are learnt, too: nats that are about many other tokens
LOOKS = 4  # how often a stage of healing is judged on the prompts that are kept aside
_CHUNK = 64
_ALL_AT_ONCE = LearningPlan(BATCH)


def answer(model: CircuitModel, part: Dataset) -> Tensor:
    """Logits at the answer positions, with gradients: (prompt, step, vocab)."""
    return respond(model, part) @ model.W_U.T


def respond(model: CircuitModel, part: Dataset, *, recompute: bool = False) -> Tensor:
    """The normed residual at the answer positions, (prompt, step, d_model); `recompute` as in `run_to_last`."""
    at = model.place(part.input_ids, part.mask, length=part.length).crop(part.n_steps)
    x = model.embed(part.input_ids, at)
    x = run_to_last(model.steps, x, at, n_last=part.n_steps, recompute=recompute)
    normed: Tensor = model.final_norm(x.to(model.W_U.device))
    return normed


def kl_from_dense(lessons: Lessons, logits: Tensor) -> Tensor:
    """KL(dense || circuit), a sum over the answer positions that there are, in nats: in float32, a loss to learn by."""
    log_p = lessons.log_p
    kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)  # (prompt, step)
    return (kl * lessons.prompts.counted).sum()


def label_loss(lessons: Lessons, logits: Tensor) -> Tensor:
    """-log of the probability of all right answers together, a sum over the positions where they are known, in nats.

    Among the choices where there are some.
    """
    return _surprise(lessons, logits).sum()


def label_error(lessons: Lessons, logits: Tensor) -> Tensor:
    """The squared error of that probability (Brier), a sum: few answers that are wrong and sure do not outweigh it."""
    return (1 - torch.exp(-_surprise(lessons, logits))).square().sum()


def _surprise(lessons: Lessons, logits: Tensor) -> Tensor:
    """What `label_loss` is the sum of: (position,), in nats."""
    prompts, steps = lessons.prompts, lessons.prompts.steps  # (prompt, step, alternative)
    right = logits.gather(-1, steps.clamp(min=0)).masked_fill(steps < 0, -torch.inf)
    if prompts.choice_ids is None:
        total = logits.logsumexp(-1)
    else:
        choices = prompts.choice_ids[:, None].expand(-1, logits.shape[1], -1)  # (prompt, step, choice)
        total = logits.gather(-1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf).logsumexp(-1)
    known = prompts.known
    return total[known] - right.logsumexp(-1)[known]


def kl_from_tutor(lessons: Lessons, logits: Tensor) -> Tensor:
    """KL(tutor || circuit) among the choices where there are some, a sum over the answer positions, in nats."""
    prompts = lessons.prompts
    if prompts.choice_ids is None:
        return kl_from_dense(lessons, logits)
    choices = prompts.choice_ids[:, None].expand(-1, logits.shape[1], -1)  # (prompt, step, choice)
    left_out = (choices < 0) & (choices >= 0).any(dim=-1, keepdim=True)  # a prompt without choices counts for nothing
    p, q = (
        of_all.gather(-1, choices.clamp(min=0)).masked_fill(left_out, -torch.inf).log_softmax(-1)
        for of_all in (lessons.log_p, logits)
    )
    kl = (p.exp() * (p - q).masked_fill(left_out, 0.0)).sum(-1)  # (prompt, step)
    return (kl * prompts.counted).sum()


Part = tuple[float, Callable[[Lessons, Tensor], Tensor], Callable[[Dataset], Tensor]]
"""Of a loss: its weight, what it sums, and which answer positions it is a mean over."""

_OF_DENSE: Part = (1.0, kl_from_dense, lambda prompts: prompts.counted)
_BESIDE: Part = (BESIDE_LABELS, kl_from_dense, lambda prompts: prompts.counted)
_OF_LABELS: Part = (1.0, label_loss, lambda prompts: prompts.known)
_OF_ERRORS: Part = (1.0, label_error, lambda prompts: prompts.known)
_OF_TUTOR: Part = (1.0, kl_from_tutor, lambda prompts: prompts.counted)

LOSSES: dict[Voice, tuple[Part, ...]] = {
    "dense": (_OF_DENSE,),
    "labels": (_OF_LABELS,),
    "both": (_BESIDE, _OF_LABELS),
    "tutor": (_OF_TUTOR,),
}
"""What is learnt from each teacher."""

LOOKED_AT = LOSSES | {"labels": (_OF_ERRORS,), "both": (_BESIDE, _OF_ERRORS)}
"""What says on the prompts kept aside how well: the log-likelihood of labels falls long before fewer are right."""


def draw_likelihood(lessons: Lessons, teacher: Teacher, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """What units are scored by: of logits, (prompt, step, vocab), the log-likelihood of what a teacher says.

    That is a token drawn from the dense model's distribution, the right answer, or both: the square of a sum's gradient
    is on average the sum of the squares, as tokens are drawn for each prompt, and so each has its weight in the loss.
    """
    drawn, counted = lessons.draw_tokens(generator)[..., None], lessons.prompts.counted

    def likelihood(logits: Tensor) -> Tensor:
        of_drawn = (logits.log_softmax(-1).gather(-1, drawn)[..., 0] * counted).sum()
        if teacher == "dense":
            return of_drawn
        of_labels = -label_loss(lessons, logits)
        return of_labels if teacher == "labels" else of_labels + BESIDE_LABELS**0.5 * of_drawn

    return likelihood


@dataclass(frozen=True, eq=False)
class Healer:
    """How a network is healed: on which prompts, after which teacher, and which prompts say when to stop.

    `plan`: how many prompts of a batch go through the network at once.
    """

    lessons: Lessons
    aside: Lessons | None
    teacher: Voice = "dense"
    ranks: Ranks = SOLO
    plan: LearningPlan = _ALL_AT_ONCE

    def heal(self, model: CircuitModel, *, steps: int, seed: int) -> int:
        """Train the model in place by AdamW, and keep the best of `LOOKS` looks; returns the steps that were done.

        A look is at the loss on the prompts kept aside, the first one before any step. Training ends early where the
        loss is next to nothing, or no look in the first half was any progress.
        """
        generator = torch.Generator().manual_seed(seed)
        lessons, _, shortlist = self._short
        batches = lessons.batches(BATCH, generator)
        with trained(model) as parameters:
            start = best = self.look(model)
            kept = _copy(parameters)
            rate = LEARNING_RATE / model.W_E.shape[1]
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
            every = max(1, steps // LOOKS)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(step, steps)
                self._take_step(model, next(batches), parameters, partial(shortlist.logits, generator=generator))
                optimizer.step()
                if (step + 1) % every == 0:
                    loss = self.look(model)
                    if not loss >= best:
                        best, kept = loss, _copy(parameters)
                    is_vain = 2 * (step + 1) >= steps and best > (1 - USEFUL) * start
                    if is_vain or loss < HARMLESS:
                        break
            with torch.no_grad():
                for parameter, values in zip(parameters, kept, strict=True):
                    parameter.copy_(values)
        return step + 1

    @cached_property
    def _short(self) -> tuple[Lessons, Lessons | None, Shortlist]:
        if self.aside is None:
            lessons, shortlist = self.lessons.shorten()
            return lessons, None, shortlist
        both, shortlist = self.lessons.join(self.aside).shorten()
        lessons, aside = map(both.take, torch.arange(len(both)).split([len(self.lessons), len(self.aside)]))
        return lessons, aside, shortlist

    def _take_step(
        self,
        model: CircuitModel,
        batch: Lessons,
        parameters: list[torch.nn.Parameter],
        unembed: Callable[[Tensor], Tensor],
    ) -> None:
        """Gradients of one step: each rank takes its share of the batch, and they are summed."""
        own = batch.take(torch.arange(self.ranks.rank, len(batch), self.ranks.size))
        for parameter in parameters:
            parameter.grad = None
        for part in own.split(self.plan.chunk):
            logits = unembed(respond(model, part.prompts, recompute=self.plan.recompute))
            weigh(LOSSES[self.teacher], part, logits, batch.prompts).backward()
        self.ranks.add_up([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)

    @torch.no_grad()
    def look(self, model: CircuitModel) -> float:
        """The mean loss on the prompts kept aside, in nats; without any, each look is better than the last.

        Of tokens that are not listed, each look sees the same ones.
        """
        _, aside, shortlist = self._short
        if aside is None:
            return math.nan
        generator, total = torch.Generator().manual_seed(0), 0.0
        for part in aside.split(_CHUNK):
            logits = shortlist.logits(respond(model, part.prompts), generator, sampled=SAMPLED_TO_JUDGE)
            total += float(weigh(LOOKED_AT[self.teacher], part, logits, aside.prompts))
        return total


def weigh(loss: tuple[Part, ...], lessons: Lessons, logits: Tensor, whole: Dataset) -> Tensor:
    """What some lessons add to the mean loss of the `whole` that they are a part of."""
    parts = [weight * of(lessons, logits) / max(1, int(count(whole).sum())) for weight, of, count in loss]
    return torch.stack(parts).sum()


def _schedule(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a tenth."""
    return min(1.0, (step + 1) / WARM_UP) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def _copy(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
