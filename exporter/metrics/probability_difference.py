"""By how much right answers together are likelier than wrong ones."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.answers import Answers


def probability_difference(answers: Answers) -> Tensor:
    """The probability of all right answers less that of all wrong ones, from -1 to 1: (prompt,) float64.

    For greater-than: of later years less that of all other tokens (Hanna et al., arXiv 2305.00586, who subtract earlier
    years alone, as this does where these are the choices). Probabilities are of the whole vocabulary. The mean over
    answer positions. Raises InputError: a prompt has no right answer.
    """
    right, total = answers.against_all.log_right, answers.against_all.log_total  # (prompt, step)
    return answers.average((right - total).exp() - (answers.against_choices.log_wrong - total).exp())
