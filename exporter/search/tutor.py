"""The tutor: where right answers are learnt, the first network that has learnt them teaches all smaller ones.

A small network learns a few thousand right answers by heart. What a larger one makes of them says more: how sure it is
(Hinton et al., arXiv 1503.02531), and what it says of prompts that nobody has answered (`variations`).
"""

from __future__ import annotations

import torch

from exporter.network.model import CircuitModel
from exporter.search.lessons import Lessons, ask_dense, ask_sorted
from exporter.search.variations import join, vary

EPOCHS = 3  # that the tutor learns for
PATIENCE = 6  # epochs that the last of its pupils learns for (Beyer et al., arXiv 2106.05237: patient and consistent)
VARIED = 2  # how many variations of each prompt it answers


def ask_tutor(
    tutor: CircuitModel, lessons: Lessons, aside: Lessons | None, generator: torch.Generator
) -> tuple[Lessons, Lessons | None]:
    """What the tutor says of the prompts to learn from and of variations of them, and of those that are kept aside."""
    prompts = lessons.prompts
    for varied in [vary(prompts, generator) for _ in range(VARIED)]:
        prompts = prompts if varied is None else join(prompts, varied)
    return ask_sorted(tutor, prompts), None if aside is None else ask_dense(tutor, aside.prompts)
