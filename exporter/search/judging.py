"""How a network does on a set of prompts that the dense model has answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.metrics import Answers, measure
from exporter.metrics.statistics import weighted_mean
from exporter.network.model import CircuitModel
from exporter.search.healing import Lessons, answer

CHUNK = 32  # prompts at once


@dataclass(frozen=True)
class Judgement:
    """How a network does on the selection set: accuracy as a share, KL(dense || circuit) in nats."""

    accuracy: float
    kl: float


@torch.no_grad()
def judge(lessons: Lessons, respond: Callable[[Lessons], Tensor]) -> Judgement:
    """Accuracy and KL of logits at the answer positions, (prompt, step, vocab), on prompts that dense has answered."""
    parts = lessons.split(CHUNK)
    answers = (Answers(part.prompts, respond(part), part.logits) for part in parts)
    values = measure(answers, ("accuracy", "kl"))
    kl = weighted_mean(values["kl"], lessons.prompts.counted.sum(dim=1))
    return Judgement(float(values["accuracy"].mean()), kl)


def judge_network(model: CircuitModel, lessons: Lessons) -> Judgement:
    """The same of a network."""
    return judge(lessons, lambda part: answer(model, part.prompts))
