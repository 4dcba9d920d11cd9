"""KL divergence, by one arithmetic for every value that is printed, stored or compared with a threshold.

For given logits, `kl_divergence` computes everything in float64. That is too slow for a search, which needs the KL of
one distribution P (the dense model's, at each answer position) to very many Q. `KLTarget` therefore prepares P once,
and computes for each Q only the difference. With f and f0 the normalised residuals of Q and P, g = f - f0, and W_v the
unembedding of token v:

    KL(P || Q) = log sum_v exp(log P_v + W_v g) - E g,    E = sum_v P_v W_v.

The rounding error of the float32 product W_v g is proportional to g, so it is small where Q is near P, which is where
thresholds are. (With W_v f and E f instead, the KL is a difference of two large numbers, with errors up to 3e-4; and
the probabilities of a float32 log-softmax over 50,000 logits sum to 1 + 1e-5.) In float64 are: E and all sums; the
likeliest tokens of P, whose rounding errors would not average out where P is nearly certain; and all tokens of those
answers where Q is so far from P that rounding would change the mean (`_find_far`). The mean over answers is within 1e-6
of an all-float64 computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from exporter.metrics.answers import Answers

ARITHMETIC = 2
"""Version of the arithmetic: raise it with any change of computed KLs, so that a journal never mixes two versions."""

_BLOCK = 2048  # tokens at once in float32: their logits stay in the CPU cache until they are exponentiated
_WIDE_BLOCK = 1024  # rows of W_U converted to float64 at once
_LIKELIEST = 8  # tokens of P that are always computed in float64
_FAR = 1.0  # nats; at a larger KL, all of Q that is computed in float32 counts as moved (`_find_far`)
_MOST_DOUBT = 1.0  # nats; float32 errors are at most 4e-7 of a logit's change (measured on 60,000 answers)
_LARGEST = 60.0  # largest |log-sum-exp| for float32, whose normal range is e^-87 to e^88
_FAR_ROWS = 128  # answers recomputed in float64 at once
_WIDE_NUMBERS = 2**21  # logits held in float64 at once


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P || Q) in nats of two distributions, given by logits: (..., vocab) both, to (...) float64.

    Logits may have any floating-point type, and be minus infinity. Negative results, which only rounding causes, are
    set to 0.
    """
    n_tokens = logits_p.shape[-1]
    rows = max(1, _WIDE_NUMBERS // n_tokens)
    pairs = (logits.reshape(-1, n_tokens).split(rows) for logits in (logits_p, logits_q))
    parts = []
    for part_p, part_q in zip(*pairs, strict=True):
        log_p, log_q = log_probabilities(part_p), log_probabilities(part_q)
        p = log_p.exp()
        parts.append((p * (log_p - log_q)).where(p != 0, 0.0).sum(-1))  # 0 log 0 = 0; NaN is kept
    return torch.cat(parts).clamp(min=0).view(logits_p.shape[:-1])


def kl_by_prompt(answers: Answers) -> Tensor:
    """KL(reference || model) in nats, the mean over each prompt's answer positions: (prompt,) float64."""
    counted = answers.prompts.counted  # (prompt, step)
    kl = torch.zeros(counted.shape, dtype=torch.float64)
    kl[counted] = kl_divergence(answers.reference_logits[counted], answers.logits[counted])
    return kl.sum(dim=1) / counted.sum(dim=1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, in float64: (..., vocab) to (..., vocab)."""
    return torch.log_softmax(logits.double(), dim=-1)


def count_target_bytes(d_vocab: int, d_model: int) -> int:
    """Bytes that a `KLTarget` holds for each answer position."""
    return 4 * d_vocab + 16 * d_model + 8 * (_LIKELIEST + 1)


@dataclass(frozen=True, eq=False)
class KLTarget:
    """The distribution P at some answer positions, prepared for the KL to many Q. Formulas: the module's docstring.

    W_U: (vocab, d_model), of any floating-point type. normed: (answer, d_model), P's residual after the final norm;
    expected: (answer, d_model), E = P @ W_U; log_sum: (answer,), the log-sum-exp of P's logits; all float64.
    likeliest: (answer, k) int64, P's k likeliest tokens. log_p: one (answer, token) float32 for each block of tokens,
    minus infinity for the likeliest, which are computed separately. rest: (answer,), P's probability of all other
    tokens. spread: the root mean square of W_U's entries.
    """

    W_U: Tensor
    normed: Tensor
    expected: Tensor
    log_sum: Tensor
    likeliest: Tensor
    log_p: list[Tensor]
    rest: Tensor
    spread: float

    @classmethod
    def of(cls, W_U: Tensor, normed: Tensor) -> KLTarget:
        """From the unembedding, (vocab, d_model), and P's residual after the final norm, (answer, d_model) float64."""
        n_tokens, d_model = W_U.shape
        logits = normed.new_empty(len(normed), n_tokens)  # (answer, vocab)
        for here, tokens in _split_wide(W_U):
            torch.mm(normed, tokens.T, out=logits[:, here])
        top = logits.topk(min(_LIKELIEST, n_tokens))  # (answer, k)
        base = top.values[:, :1]
        total, expected, squares = normed.new_zeros(len(normed), 1), normed.new_zeros(len(normed), d_model), 0.0
        for here, tokens in _split_wide(W_U):
            p = (logits[:, here] - base).exp_()
            total += p.sum(1, keepdim=True)
            expected += p @ tokens  # a fixed order of summation, whatever the thread timing
            squares += float(tokens.square().sum())
        log_sum = base + total.log()  # (answer, 1)
        log_p = [(part - log_sum).float() for part in logits.scatter_(1, top.indices, -torch.inf).split(_BLOCK, dim=1)]
        return cls(
            W_U=W_U,
            normed=normed,
            expected=expected / total,
            log_sum=log_sum[:, 0],
            likeliest=top.indices,
            log_p=log_p,
            rest=1 - (top.values - log_sum).exp().sum(-1),
            spread=(squares / W_U.numel()) ** 0.5,
        )

    def kl(self, normed: Tensor) -> Tensor:
        """KL(P || Q) in nats for each answer of each candidate, Q given by its residual after the final norm.

        normed: (candidate, answer, d_model) float64. Returns (candidate, answer) float64; the mean over answers is
        right to 1e-6. Negative results, which only rounding causes (1e-7 where Q equals P), are set to 0.
        """
        return self.measure(normed).clamp(min=0)

    def measure(self, normed: Tensor) -> Tensor:
        """As `kl`, but rounding may make results negative."""
        change = normed - self.normed  # (candidate, answer, d_model)
        expected = (change * self.expected).sum(-1)  # (candidate, answer)
        rows = change.float().flatten(0, 1)
        # rounding the change to float32 shifts the logits, on average over P, by `lost`: correct for that mean
        lost = ((change - rows.double().view_as(change)) * self.expected).sum(-1)
        likeliest = self._compute_likeliest(normed).exp_().sum(-1)
        rest = torch.zeros_like(likeliest)
        for tokens, log_p in zip(self.W_U.split(_BLOCK), self.log_p, strict=True):
            logits = torch.mm(rows, tokens.float().T).view(len(normed), -1, len(tokens))  # (candidate, answer, token)
            rest += logits.add_(log_p).exp_().sum(-1)
        rest *= lost.exp()
        log_total = (likeliest + rest).log()
        beyond = ~(log_total.abs() < _LARGEST)
        share = (rest / (likeliest + rest)).where(~beyond, 0.0)
        far = self._find_far(share, log_total - expected, expected, change)
        candidates, answers = (far | beyond).nonzero(as_tuple=True)
        for part in zip(candidates.split(_FAR_ROWS), answers.split(_FAR_ROWS), strict=True):
            log_total[part] = _log_sum_exp(self.W_U, normed[part]) - self.log_sum[part[1]]
        return log_total - expected

    def _find_far(self, rest: Tensor, kl: Tensor, expected: Tensor, change: Tensor) -> Tensor:
        """The answers whose float32 rounding errors would change a candidate's mean KL: (candidate, answer) bool.

        `rest`: Q's probability of the tokens computed in float32. The part of it that exceeds P's (all of it where the
        KL is above _FAR) may be on one token, whose rounding error does not average out. It is weighted by the
        approximate change of a logit: |`expected`|, plus `spread` times the norm of `change`.
        """
        moved = torch.where(kl > _FAR, rest, rest - self.rest).clamp(min=0)
        doubt = moved * (expected.abs() + self.spread * change.norm(dim=-1))
        far: Tensor = (doubt > _MOST_DOUBT) & (doubt.mean(-1, keepdim=True) > _MOST_DOUBT)
        return far

    def _compute_likeliest(self, normed: Tensor) -> Tensor:
        """Logits of P's likeliest tokens in float64, minus P's log-sum-exp.

        normed: (candidate, answer, d_model). Returns (candidate, answer, k).
        """
        rows = self.W_U[self.likeliest].double()  # (answer, k, d_model)
        return torch.einsum("akd,cad->cak", rows, normed) - self.log_sum[:, None]


def _log_sum_exp(W_U: Tensor, normed: Tensor) -> Tensor:
    """The log-sum-exp of the logits W_U @ residual, in float64: (row, d_model) to (row,)."""
    parts = [torch.mm(normed, tokens.T).logsumexp(1) for _, tokens in _split_wide(W_U)]
    return torch.stack(parts).logsumexp(0) if len(normed) else normed.new_zeros(0)


def _split_wide(W_U: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of W_U's rows in float64, each with its slice of token ids."""
    bounds = [*range(0, len(W_U), _WIDE_BLOCK), len(W_U)]
    for start, end in pairwise(bounds):
        yield slice(start, end), W_U[start:end].double()
