"""By how much the best right answer is ahead of the best wrong one."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.metrics.answers import Answers


def logit_difference(answers: Answers) -> Tensor:
    """The likeliest right answer's logit less the likeliest wrong one's: (prompt,) float64.

    Wrong ones are the wrong choices, or all other tokens in a set without choices. With two choices it is the logit
    difference of Wang et al. (arXiv 2211.00593); with one answer position it is above 0 exactly where the prediction is
    right, but for ties. The mean over answer positions. 0 where there is nothing wrong to choose. Raises InputError: a
    prompt has no right answer.
    """
    found = answers.against_choices
    best = found.wrong.amax(dim=-1)  # (prompt, step)
    return answers.average((found.right.amax(dim=-1) - best).where(~torch.isneginf(best), 0.0))
