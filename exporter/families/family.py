"""What an adapter says about a family of models: its layout, declared and never guessed from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from exporter.circuit_model import CircuitModel


@dataclass(frozen=True)
class Family:
    """How one family's Hugging Face model (`hf` below) maps to components, weights and hook points.

    `attention_output(hf, layer)` is the output projection: its input is z, (batch, pos, head *
    d_head). `mlp(hf, layer)` is the module whose output is the MLP's whole contribution.
    `check_config` raises InputError for what the family's CircuitModel cannot compute.
    """

    name: str
    architecture: str
    check_config: Callable[[Any], None]
    build_dense: Callable[[Any], CircuitModel]
    n_layers: Callable[[Any], int]
    n_heads: Callable[[Any], int]
    attention_output: Callable[[Any, int], nn.Module]
    mlp: Callable[[Any, int], nn.Module]
