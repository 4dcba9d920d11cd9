"""KL divergence the other way round: large where the model expects what its reference does not."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.answers import Answers


def reverse_kl(answers: Answers) -> Tensor:
    """KL(model || reference) in nats, the mean over each prompt's answer positions: (prompt,) float64.

    KL(Q || P) = sum_v Q_v log(Q_v / P_v) (Kullback and Leibler, 1951).
    """
    log_q, log_p = answers.log_p, answers.of_reference.log_p
    q = log_q.exp()
    return answers.average((q * (log_q - log_p)).where(q != 0, 0.0).sum(dim=-1).clamp(min=0))  # 0 log 0 = 0
