"""Checkpoint folders, changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def put_nan(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["transformer.h.0.ln_1.bias"].fill_(math.nan))
