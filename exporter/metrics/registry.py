"""Metrics of logits: one value for each prompt, so that values can be paired, averaged and tested.

A metric is a function of `Answers`. To add one, write a file and add a line to METRICS; every evaluation then reports
its mean, and a search can go by it where it says which way is better.
"""

from collections.abc import Collection, Iterable
from itertools import chain

import torch
from torch import Tensor

from exporter.metrics.accuracy import accuracy
from exporter.metrics.agreement import agreement, same_verdict
from exporter.metrics.answer_kl import answer_kl
from exporter.metrics.answers import Answers, Metric, of_reference
from exporter.metrics.calibration import brier, confidence
from exporter.metrics.divergence import kl_by_prompt
from exporter.metrics.jensen_shannon import js
from exporter.metrics.logit_difference import logit_difference
from exporter.metrics.probability_difference import probability_difference
from exporter.metrics.reverse_kl import reverse_kl

METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "share of prompts", "higher"),
    "reference_accuracy": Metric(of_reference(accuracy), "share of prompts"),
    "agreement": Metric(agreement, "share of prompts", "higher"),
    "same_verdict": Metric(same_verdict, "share of prompts"),
    "kl": Metric(kl_by_prompt, "nats", "lower"),
    "reverse_kl": Metric(reverse_kl, "nats", "lower"),
    "js": Metric(js, "nats", "lower"),
    "answer_kl": Metric(answer_kl, "nats", "lower"),
    "logit_difference": Metric(logit_difference, "logits", "higher"),
    "reference_logit_difference": Metric(of_reference(logit_difference), "logits"),
    "probability_difference": Metric(probability_difference, "probability", "higher"),
    "reference_probability_difference": Metric(of_reference(probability_difference), "probability"),
    "brier": Metric(brier, "Brier score", "lower"),
    "reference_brier": Metric(of_reference(brier), "Brier score"),
    "confidence": Metric(confidence, "probability"),
    "reference_confidence": Metric(of_reference(confidence), "probability"),
}

SEARCHED = tuple(name for name, metric in METRICS.items() if metric.better is not None)
"""The metrics that a search can go by."""


def measure(parts: Iterable[Answers], names: Collection[str] = tuple(METRICS)) -> dict[str, Tensor]:
    """By metric: its value for each prompt of all parts, (prompt,) float64."""
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for answers in chain.from_iterable(part.split() for part in parts):
        for name, of_parts in values.items():
            of_parts.append(METRICS[name](answers))
    return {name: torch.cat(of_parts) for name, of_parts in values.items()}
