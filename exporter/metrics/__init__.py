"""Metrics of logits: one value for each prompt, so that values can be paired, averaged and tested."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.metrics.answers import Answers, Metric
    from exporter.metrics.registry import METRICS, SEARCHED, measure

_HOME = {
    "Answers": "answers",
    "METRICS": "registry",
    "Metric": "answers",
    "SEARCHED": "registry",
    "measure": "registry",
}

__all__ = [
    "METRICS",
    "SEARCHED",
    "Answers",
    "Metric",
    "measure",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: what reads figures alone needs no torch, which takes seconds to load."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporter.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"exporter.metrics.{_HOME[name]}"), name)
