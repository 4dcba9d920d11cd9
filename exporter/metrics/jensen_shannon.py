"""Jensen-Shannon divergence: symmetric, and never more than log 2."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.answers import Answers


def js(answers: Answers) -> Tensor:
    """JS(reference, model) in nats, from 0 to log 2, the mean over each prompt's answer positions: (prompt,) float64.

    JS(P, Q) = (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2 (Lin, IEEE Trans. Inf. Theory 37(1), 1991). Negative
    results, which only rounding causes, are set to 0.
    """
    log_p, log_q = answers.of_reference.log_p, answers.log_p
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    parts = [(x * (log_x - log_m)).where(x != 0, 0.0).sum(dim=-1) for x, log_x in ((p, log_p), (q, log_q))]
    return answers.average(((parts[0] + parts[1]) / 2).clamp(min=0))
