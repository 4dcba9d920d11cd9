"""How good a circuit is on prompts that nothing before has read: accuracy, KL, agreement with dense.

This is *faithfulness*; whether three implementations of the circuit agree is `verify`'s question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from exporter.dataset import Dataset
from exporter.means import CHUNK

AnswerLogits = Callable[[Tensor, Tensor | None, int], Tensor]
"""(prompt, pos) token ids, their mask, answer positions S, to (prompt, S, vocab) logits at the last S positions."""


@dataclass(frozen=True)
class Accuracy:
    """A share of right top-1 answers, with its 95 % Wilson interval."""

    accuracy: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, n_right: int, n: int) -> Accuracy:
        """From a count; the interval is the score interval of Wilson (1927)."""
        interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
        return cls(n_right / n, (float(interval.low), float(interval.high)))


@dataclass(frozen=True)
class Evaluation:
    """Dense and circuit on the same n prompts. `kl` is mean KL(dense || circuit) in nats over the whole
    vocabulary and all answer positions; `agreement` is the share of prompts on which both predict the same."""

    n: int
    dense: Accuracy
    circuit: Accuracy
    kl: float
    agreement: float


@torch.inference_mode()
def evaluate_circuit(dense: AnswerLogits, circuit: AnswerLogits, dataset: Dataset) -> Evaluation:
    """Compare two models on a set, in chunks.

    A prediction is the likeliest token, of the choices where the set has some; an answer of several tokens is
    right when all of them are.
    """
    kl, agree, dense_right, circuit_right = 0.0, 0, 0, 0
    for part in dataset.split(CHUNK):
        counted = part.counted  # (prompt, step)
        dense_logits, circuit_logits = (f(part.input_ids, part.mask, part.n_steps) for f in (dense, circuit))
        log_p, log_q = dense_logits.log_softmax(-1), circuit_logits.log_softmax(-1)  # (prompt, step, vocab)
        kl += float((log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)[counted].sum())
        dense_top, circuit_top = part.predict(dense_logits), part.predict(circuit_logits)  # (prompt, step)
        agree += int(((dense_top == circuit_top) | ~counted).all(dim=1).sum())
        dense_right += int(part.is_answer(dense_top).sum())
        circuit_right += int(part.is_answer(circuit_top).sum())
    n = len(dataset)
    kl /= int(dataset.counted.sum())
    return Evaluation(n, Accuracy.of(dense_right, n), Accuracy.of(circuit_right, n), kl, agree / n)


@torch.inference_mode()
def evaluate_dense(answer_logits: AnswerLogits, dataset: Dataset) -> Accuracy:
    """How often one model's prediction is right."""
    parts = dataset.split(CHUNK)
    right = [part.is_answer(part.predict(answer_logits(part.input_ids, part.mask, part.n_steps))) for part in parts]
    return Accuracy.of(int(torch.cat(right).sum()), len(dataset))
