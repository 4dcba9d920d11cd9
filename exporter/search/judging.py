"""How a network does on a set of prompts that the dense model has answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from exporter.metrics import Answers, measure
from exporter.metrics.statistics import weighted_mean
from exporter.network.model import CircuitModel
from exporter.search.healing import answer
from exporter.search.lessons import Lessons, Teacher

CHUNK = 32  # prompts at once
MOST_OF_CONSTANT = 0.75  # of the KL of a model that always answers alike: a circuit has to be nearer
BY_CHANCE = 1e-3  # a search judges many networks: the likelihood that one of them is as often right by chance


@dataclass(frozen=True)
class Judgement:
    """How a network does on the selection set of n prompts: accuracy as a share, KL(dense || circuit) in nats."""

    accuracy: float
    kl: float
    n: int

    def beats(self, constant: Judgement, teacher: Teacher) -> bool:
        """Whether a network does better than one that always answers alike.

        That is nearer to a dense model that teaches, and more often right, beyond chance, where right answers do.
        """
        if teacher == "dense":
            return self.kl <= MOST_OF_CONSTANT * constant.kl
        n_right = round(self.accuracy * self.n)
        by_chance = binomtest(n_right, self.n, constant.accuracy, alternative="greater").pvalue
        return bool(by_chance < BY_CHANCE)


@torch.no_grad()
def judge(lessons: Lessons, respond: Callable[[Lessons], Tensor]) -> Judgement:
    """Accuracy and KL of logits at the answer positions, (prompt, step, vocab), on prompts that dense has answered."""
    parts = lessons.split(CHUNK)
    answers = (Answers(part.prompts, respond(part), part.logits) for part in parts)
    values = measure(answers, ("accuracy", "kl"))
    kl = weighted_mean(values["kl"], lessons.prompts.counted.sum(dim=1))
    return Judgement(float(values["accuracy"].mean()), kl, len(lessons))


def judge_network(model: CircuitModel, lessons: Lessons) -> Judgement:
    """The same of a network."""
    return judge(lessons, lambda part: answer(model, part.prompts))


def judge_constant(selection: Lessons, lessons: Lessons, teacher: Teacher) -> Judgement:
    """How a model does that always answers alike.

    Where the dense model teaches, as it answers the lessons on average; else with the right answers of the selection
    set itself, as often as they occur there: no constant answer is right more often.
    """
    if teacher == "dense":
        told = [(part, part.log_p.double().exp()) for part in lessons.split(CHUNK)]
    else:
        told = [(part, _tell_labels(part)) for part in selection.split(CHUNK)]
    total = torch.stack([(p * part.prompts.counted[..., None]).sum(0) for part, p in told]).sum(0)  # (step, vocab)
    total = torch.where(total.any(-1, keepdim=True), total, total.sum(0))  # a step that no lesson has
    log_q = total.clamp(min=1e-300).log()
    return judge(selection, lambda part: log_q.expand(len(part), -1, -1))


def _tell_labels(lessons: Lessons) -> Tensor:
    """1 at each right answer: (prompt, step, vocab)."""
    steps = lessons.prompts.steps  # (prompt, step, alternative)
    told = torch.zeros(*steps.shape[:2], len(lessons.W_U), dtype=torch.float64, device=steps.device)
    return told.scatter_add_(-1, steps.clamp(min=0), (steps >= 0).double())
