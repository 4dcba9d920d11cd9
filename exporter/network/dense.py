"""The dense CircuitModel of a loaded language model."""

from __future__ import annotations

from typing import Protocol

from exporter.errors import InputError
from exporter.network.model import CircuitModel


class HasDense(Protocol):
    """A loaded language model, or a dense CircuitModel itself."""

    @property
    def dense(self) -> CircuitModel:
        """The model with every component."""


def get_dense(model: HasDense) -> CircuitModel:
    """The CircuitModel with every component. Raises InputError: `model` has none (such as a Hugging Face model)."""
    if not isinstance(dense := getattr(model, "dense", None), CircuitModel):
        raise InputError(f"model must be what load_model gives, or a CircuitModel, not {type(model).__name__}")
    return dense
