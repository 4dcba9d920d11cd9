"""Whether each prompt's answer is right: all of its tokens must be."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.answers import Answers


def accuracy(answers: Answers) -> Tensor:
    """1 where the model's prediction is a right answer, else 0: (prompt,) float64."""
    return answers.prompts.is_answer(answers.predicted).double()
