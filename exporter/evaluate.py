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

NextTokenLogits = Callable[[Tensor], Tensor]
"""(prompt, pos) int64 token ids to (prompt, vocab) logits at the last position."""


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
    vocabulary; `agreement` is the share of prompts on which both have the same top-1 token."""

    n: int
    dense: Accuracy
    circuit: Accuracy
    kl: float
    agreement: float


@torch.inference_mode()
def evaluate_circuit(dense: NextTokenLogits, circuit: NextTokenLogits, dataset: Dataset) -> Evaluation:
    """Compare two models on a set, in chunks. Accuracy is top-1 over the whole vocabulary."""
    kl, agree, dense_right, circuit_right = 0.0, 0, 0, 0
    for start in range(0, len(dataset), CHUNK):
        part = dataset[start : start + CHUNK]
        dense_logits, circuit_logits = dense(part.input_ids), circuit(part.input_ids)
        log_p, log_q = dense_logits.log_softmax(-1), circuit_logits.log_softmax(-1)  # (prompt, vocab)
        kl += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        dense_top, circuit_top = dense_logits.argmax(-1), circuit_logits.argmax(-1)
        agree += int((dense_top == circuit_top).sum())
        dense_right += int(part.is_answer(dense_top).sum())
        circuit_right += int(part.is_answer(circuit_top).sum())
    n = len(dataset)
    return Evaluation(n, Accuracy.of(dense_right, n), Accuracy.of(circuit_right, n), kl / n, agree / n)
