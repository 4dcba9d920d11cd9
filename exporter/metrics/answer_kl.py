"""KL of the answer alone: all right answers of a prompt are one event, all other tokens another."""

from __future__ import annotations

from torch import Tensor

from exporter.metrics.answers import Answers


def answer_kl(answers: Answers) -> Tensor:
    """KL between two Bernoulli distributions in nats, the mean over each prompt's answer positions: (prompt,) float64.

    p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with p and q the probability that the reference and the model give
    to the right answers together (greater-than: to all later years), over the whole vocabulary. Whatever the model
    changes among right answers, or among wrong ones, counts for nothing; so it is never above the KL of the whole
    distributions (data processing inequality: Cover and Thomas, Elements of Information Theory, section 2.8). Raises
    InputError: a prompt has no right answer.
    """
    p, q = answers.of_reference.against_all, answers.against_all
    pairs = ((p.log_right, q.log_right), (p.log_wrong, q.log_wrong))
    parts = []
    for of_p, of_q in pairs:
        log_p, log_q = of_p - p.log_total, of_q - q.log_total  # (prompt, step)
        parts.append((log_p.exp() * (log_p - log_q)).where(log_p.exp() != 0, 0.0))  # 0 log 0 = 0
    return answers.average((parts[0] + parts[1]).clamp(min=0))
