"""Lessons of prompts with other words, where the dense model alone teaches."""

from __future__ import annotations

import torch

from exporter.network.model import CircuitModel
from exporter.search.lessons import Lessons, ask_sorted
from exporter.search.problem import Problem
from exporter.search.rounds import count_lessons
from exporter.search.variations import exchange


def vary_lessons(problem: Problem, lessons: Lessons, aside: Lessons | None) -> tuple[Lessons, Lessons | None]:
    """What networks learn from, and what is kept aside: with other words, too, where nothing else has answers.

    A refit goes by the residuals of the prompts themselves.
    """
    if problem.heal != "distil" or problem.teacher != "dense":
        return lessons, aside
    generator = torch.Generator().manual_seed(100_000 * problem.seed + 997)
    most = count_lessons(problem.dense.count_parameters())
    varied = exchange_words(lessons, problem.dense, most, generator)
    return varied, None if aside is None else exchange_words(aside, problem.dense, most, generator).sort()


def exchange_words(lessons: Lessons, dense: CircuitModel, most: int, generator: torch.Generator) -> Lessons:
    """The same, and what the dense model says of at most so many of them with other words (`exchange`)."""
    varied = exchange(lessons.prompts, dense.W_E, generator).take(torch.arange(min(most, len(lessons))))
    return lessons.join(ask_sorted(dense, varied))
