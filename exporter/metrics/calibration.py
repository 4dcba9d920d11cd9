"""Whether probabilities mean what they say: Brier's score, and the expected calibration error of a set.

Both see the same forecast at each answer position: all right answers of the prompt are one outcome, each wrong token
(or wrong choice, where the set has choices) is one; probabilities sum to 1 over these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.metrics.answers import Answers

BINS = 15
"""Bins of equal width in `find_ece`, as in Guo et al. (arXiv 1706.04599)."""


def brier(answers: Answers) -> Tensor:
    """Brier's score, from 0 to 2, the mean over each prompt's answer positions: (prompt,) float64.

    (1 - P)^2 + sum of p_w^2 over wrong outcomes w, with P the probability of the right outcome (Brier, Monthly Weather
    Review 78(1), 1950). A proper score: the least on average for a model that says what it expects. Raises
    InputError: a prompt has no right answer.
    """
    found = answers.against_choices
    squares = (found.wrong - found.log_total[..., None]).mul_(2).exp_().sum(dim=-1)  # (prompt, step)
    return answers.average((found.log_wrong - found.log_total).exp().square() + squares)


def confidence(answers: Answers) -> Tensor:
    """The probability that the model gives to the outcome it predicts, from 0 to 1: (prompt,) float64.

    The product over a prompt's answer positions. Raises InputError: a prompt has no right answer.
    """
    found = answers.against_choices
    best = found.wrong.amax(dim=-1)
    predicted = torch.where(found.right.amax(dim=-1) >= best, found.log_right, best)  # (prompt, step)
    return (predicted - found.log_total).exp().where(answers.prompts.counted, 1.0).prod(dim=1)


def find_ece(confidences: Tensor, right: Tensor, n_bins: int = BINS) -> float:
    """Expected calibration error of a set, from 0 to 1.

    sum over bins B of |B| / n * |accuracy(B) - mean confidence(B)|, B of equal width: ((m - 1) / n_bins, m / n_bins],
    0 in the first (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599). confidences: (prompt,), as `confidence`
    gives them. right: (prompt,), 1 where the prediction is right, else 0. It grows with few prompts: compare sets of
    one size.
    """
    bins = (confidences.double() * n_bins).ceil().long().clamp(1, n_bins) - 1  # (prompt,)
    gaps = torch.zeros(n_bins, dtype=torch.float64).index_add_(0, bins, right.double() - confidences.double())
    return float(gaps.abs().sum() / len(confidences))
