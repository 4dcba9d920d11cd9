"""A shorter vocabulary to learn with: a step of healing would else spend most of its time on unlikely tokens.

Listed are the tokens that the dense model finds likely behind some prompt, and all answers and choices. The others are
one more entry, whose probability is estimated in each step from a sample of them (as in Bengio & Senecal, 2003).
KL over these entries is a lower bound of that over the vocabulary; what is reported is always the latter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporter.tasks.dataset import Dataset

LIKELY = 1e-3  # probability
SAMPLED, SAMPLED_TO_JUDGE = 1024, 8192  # other tokens in each step, and where networks are compared
_LEAST = 1e-12  # of the other tokens' probability together
_LOWEST = -60.0  # of their logit: there may be no others


@dataclass(frozen=True, eq=False)
class Shortlist:
    """tokens: the listed ones, (entry,) int64. others: all the rest. W: rows of `W_U` of the listed ones."""

    tokens: Tensor
    others: Tensor
    W: Tensor
    W_U: Tensor

    def logits(self, normed: Tensor, generator: torch.Generator, *, sampled: int = SAMPLED) -> Tensor:
        """(prompt, step, d_model) -> (prompt, step, entry + 1); the last entry stands for all others."""
        n, drawn = len(self.others), self.others
        if n > sampled:
            drawn = self.others[torch.randint(n, (sampled,), generator=generator).to(self.others.device)]
        of_others = (normed @ self.W_U[drawn].T).logsumexp(-1, keepdim=True) + math.log(max(1, n) / max(1, len(drawn)))
        return torch.cat([normed @ self.W.T, of_others.clamp(min=_LOWEST)], dim=-1)

    def shorten(self, p: Tensor) -> Tensor:
        """Probabilities as log-probabilities of the entries: (prompt, step, vocab) -> (prompt, step, entry + 1)."""
        listed = p[..., self.tokens]
        return torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], dim=-1).clamp(min=_LEAST).log()

    def translate(self, prompts: Dataset) -> Dataset:
        """The prompts with answers and choices as numbers of entries."""
        entries = torch.full((len(self.W_U),), -1, device=self.tokens.device)
        entries[self.tokens] = torch.arange(len(self.tokens), device=self.tokens.device)

        def number(ids: Tensor) -> Tensor:
            return torch.where(ids < 0, ids, entries[ids.clamp(min=0)])

        choices = None if prompts.choice_ids is None else number(prompts.choice_ids)
        return replace(prompts, answer_ids=number(prompts.answer_ids), choice_ids=choices)


def make_shortlist(prompts: Dataset, likeliest: Tensor, W_U: Tensor) -> Shortlist:
    """`likeliest`: the highest probability that each token has behind some prompt, (vocab,)."""
    listed = likeliest >= LIKELY
    for ids in (prompts.answer_ids, prompts.choice_ids):
        if ids is not None:
            listed[ids[ids >= 0]] = True
    tokens, others = listed.nonzero()[:, 0], (~listed).nonzero()[:, 0]
    return Shortlist(tokens, others, W_U[tokens].detach().clone(), W_U)
