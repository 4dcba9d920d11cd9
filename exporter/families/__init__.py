"""The model families that are known, by transformers' `model_type`."""

from __future__ import annotations

from exporter.families.family import Family
from exporter.families.gpt2 import GPT2

FAMILIES: dict[str, Family] = {"gpt2": GPT2}

__all__ = ["FAMILIES", "Family"]
