"""Healing: what stays learns to answer as the teacher does.

The survivors' projections and the constants of the steps are trained; embeddings, norms and unembedding are not. The
loss is KL(teacher || circuit) at the answer positions, over the whole vocabulary; with labels, the negative log-
likelihood of the right answers, among the choices where a prompt has some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.step import run_to_last
from exporter.search.gates import trained
from exporter.search.ranks import SOLO, Ranks
from exporter.tasks.dataset import Dataset

Heal = Literal["none", "refit", "distil"]
Teacher = Literal["dense", "labels", "both"]

LEARNING_RATE = 0.4  # over d_model: wider networks take smaller steps (Yang et al., arXiv 2203.03466)
WARM_UP = 10  # steps
BATCH = 32  # prompts in a step
CLIP = 1.0  # of the gradient's norm
HARMLESS = 0.005  # nats: nearer to the teacher, nothing is left to learn
LOOKS = 4  # how often a stage of healing is judged on the prompts that are kept aside
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Lessons:
    """Prompts with what the dense model says at their answer positions.

    normed: its residual there after the final norm, (prompt, step, d_model), from which its logits follow.
    """

    prompts: Dataset
    normed: Tensor
    W_U: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Lessons:
        """Some prompts."""
        return Lessons(self.prompts.take(rows), self.normed[rows], self.W_U)

    def split(self, size: int) -> list[Lessons]:
        """All prompts, in parts."""
        return [self.take(rows) for rows in torch.arange(len(self)).split(size)]

    @property
    def logits(self) -> Tensor:
        """Logits of the dense model: (prompt, step, vocab)."""
        return self.normed @ self.W_U.T

    @property
    def log_p(self) -> Tensor:
        """Log-probabilities of the dense model: (prompt, step, vocab)."""
        return self.logits.log_softmax(-1)

    def draw_tokens(self, generator: torch.Generator) -> Tensor:
        """A token for each answer position, drawn from the dense model's distribution: (prompt, step)."""
        p = self.log_p.exp()
        return torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Lessons]:
        """Batches without end, each prompt at most once an epoch."""
        size = min(size, len(self))
        while True:
            order = torch.randperm(len(self), generator=generator)
            yield from (self.take(rows) for rows in order.split(size) if len(rows) == size)


@torch.no_grad()
def ask_dense(dense: CircuitModel, prompts: Dataset) -> Lessons:
    """Run the dense model on prompts, once."""
    normed = []
    for part in prompts.split(_CHUNK):
        at = dense.place(part.input_ids, part.mask)
        x = run_to_last(dense.steps, dense.embed(part.input_ids, at), at, n_last=part.n_steps)
        normed.append(dense.final_norm(x.to(dense.W_U.device)))
    return Lessons(prompts, torch.cat(normed), dense.W_U)


def answer(model: CircuitModel, part: Dataset) -> Tensor:
    """Logits at the answer positions, with gradients: (prompt, step, vocab)."""
    at = model.place(part.input_ids, part.mask, length=part.length)
    x = run_to_last(model.steps, model.embed(part.input_ids, at), at, n_last=part.n_steps)
    return model.unembed(x)


def kl_from_dense(lessons: Lessons, logits: Tensor) -> Tensor:
    """KL(dense || circuit), a sum over the answer positions that there are, in nats: in float32, a loss to learn by."""
    log_p = lessons.log_p
    kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)  # (prompt, step)
    return (kl * lessons.prompts.counted).sum()


def label_loss(lessons: Lessons, logits: Tensor) -> Tensor:
    """-log of the probability of all right answers together, a sum over the answer positions that there are, in nats.

    Among the choices where there are some.
    """
    prompts, steps = lessons.prompts, lessons.prompts.steps  # (prompt, step, alternative)
    right = logits.gather(-1, steps.clamp(min=0)).masked_fill(steps < 0, -torch.inf)
    if prompts.choice_ids is None:
        total = logits.logsumexp(-1)
    else:
        choices = prompts.choice_ids[:, None].expand(-1, logits.shape[1], -1)  # (prompt, step, choice)
        total = logits.gather(-1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf).logsumexp(-1)
    loss = torch.where(prompts.counted, total - right.logsumexp(-1), 0.0)
    return loss.sum()


LOSSES = {
    "dense": (kl_from_dense,),
    "labels": (label_loss,),
    "both": (kl_from_dense, label_loss),
}
"""What each teacher's loss is a sum of."""


@dataclass(frozen=True, eq=False)
class Healer:
    """How a network is healed: on which prompts, after which teacher, and which prompts say when to stop."""

    lessons: Lessons
    aside: Lessons | None
    teacher: Teacher = "dense"
    ranks: Ranks = SOLO

    def heal(self, model: CircuitModel, *, steps: int, seed: int) -> int:
        """Train the model in place by AdamW, and keep the best of `LOOKS` looks; returns the steps that were done.

        A look is at the loss on the prompts kept aside, the first one before any step. Training ends where two looks
        in a row are worse than the best, or the loss is next to nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        batches = self.lessons.batches(BATCH, generator)
        with trained(model) as parameters:
            best, since, kept = self.look(model), 0, _copy(parameters)
            rate = LEARNING_RATE / model.W_E.shape[1]
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
            every = max(1, steps // LOOKS)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(step, steps)
                self._step(model, next(batches), optimizer, parameters)
                if (step + 1) % every == 0:
                    loss = self.look(model)
                    if not loss >= best:
                        best, since, kept = loss, 0, _copy(parameters)
                    else:
                        since += 1
                    if since == 2 or loss < HARMLESS:
                        break
            with torch.no_grad():
                for parameter, values in zip(parameters, kept, strict=True):
                    parameter.copy_(values)
        return step + 1

    def _step(
        self,
        model: CircuitModel,
        batch: Lessons,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
    ) -> None:
        """One step: each rank takes its share of the batch, and gradients are summed."""
        n = int(batch.prompts.counted.sum())
        own = batch.take(torch.arange(self.ranks.rank, len(batch), self.ranks.size))
        optimizer.zero_grad(set_to_none=True)
        loss = self._loss(own, answer(model, own.prompts)) / n
        loss.backward()
        self.ranks.add_up([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    @torch.no_grad()
    def look(self, model: CircuitModel) -> float:
        """The mean loss on the prompts kept aside, in nats; without any, each look is better than the last."""
        if self.aside is None:
            return math.nan
        parts = self.aside.split(_CHUNK)
        total = sum(float(self._loss(part, answer(model, part.prompts))) for part in parts)
        return total / int(self.aside.prompts.counted.sum())

    def _loss(self, lessons: Lessons, logits: Tensor) -> Tensor:
        return torch.stack([loss(lessons, logits) for loss in LOSSES[self.teacher]]).sum()


def _schedule(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a tenth."""
    return min(1.0, (step + 1) / WARM_UP) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def _copy(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
