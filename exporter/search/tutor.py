"""The tutor: where right answers are learnt, the first network that has learnt them teaches all smaller ones.

A small network learns a few thousand right answers by heart. What a larger one makes of them says more: how sure it is
(Hinton et al., arXiv 1503.02531), and what it says of prompts that nobody has answered (`variations`).
"""

from __future__ import annotations

import torch

from exporter.network.model import CircuitModel
from exporter.search.lessons import Lessons, ask_dense
from exporter.search.variations import join, vary

EPOCHS = 3  # that the tutor learns for


def ask_tutor(
    tutor: CircuitModel, lessons: Lessons, aside: Lessons | None, generator: torch.Generator
) -> tuple[Lessons, Lessons | None]:
    """What the tutor says of the prompts to learn from and of as many variations, and of those that are kept aside."""
    prompts = lessons.prompts
    varied = vary(prompts, generator)
    if varied is not None:
        prompts = join(prompts, varied)
    rows = prompts.order_by_length()
    answered = ask_dense(tutor, prompts.take(rows)).take(rows.argsort())
    return answered, None if aside is None else ask_dense(tutor, aside.prompts)
