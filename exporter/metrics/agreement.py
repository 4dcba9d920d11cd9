"""Whether two models agree on each prompt: in their predictions, or in being right."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.accuracy import accuracy
from exporter.metrics.answers import Answers


def agreement(answers: Answers) -> Tensor:
    """1 where both predict the same tokens, right or wrong, else 0: (prompt,) float64."""
    same = (answers.predicted == answers.reference_predicted) | ~answers.prompts.counted  # (prompt, step)
    return same.all(dim=1).double()


def same_verdict(answers: Answers) -> Tensor:
    """1 where both are right or both are wrong, else 0: (prompt,) float64."""
    return (accuracy(answers) == accuracy(answers.of_reference)).double()
