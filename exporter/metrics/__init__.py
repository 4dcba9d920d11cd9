"""Metrics of logits: one value for each prompt, so that values can be paired, averaged and tested.

A metric is a function of `Answers`. To add one, write a file and add a line to METRICS; every evaluation then reports
its mean.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from exporter.metrics.accuracy import accuracy, reference_accuracy
from exporter.metrics.agreement import agreement, same_verdict
from exporter.metrics.answers import Answers, Metric
from exporter.metrics.divergence import kl_by_prompt

METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "reference_accuracy": reference_accuracy,
    "agreement": agreement,
    "same_verdict": same_verdict,
    "kl": kl_by_prompt,
}


def measure(parts: Iterable[Answers]) -> dict[str, Tensor]:
    """By metric: its value for each prompt of all parts, (prompt,) float64."""
    values: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    for answers in parts:
        for name, metric in METRICS.items():
            values[name].append(metric(answers))
    return {name: torch.cat(of_parts) for name, of_parts in values.items()}


__all__ = ["METRICS", "Answers", "Metric", "measure"]
