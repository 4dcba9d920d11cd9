"""The model families that we have an adapter for, by transformers' `model_type`."""

from __future__ import annotations

from exporter.loading.families.family import Family
from exporter.loading.families.gpt2 import GPT2
from exporter.loading.families.gpt_neox import GPT_NEOX
from exporter.loading.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from exporter.loading.families.starcoder2 import STARCODER2

FAMILIES: dict[str, Family] = {
    family.name: family for family in (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GPT_NEOX, STARCODER2)
}

__all__ = ["FAMILIES", "Family"]
