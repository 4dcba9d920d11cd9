"""What a removed component is replaced by: its mean over the patching set, or zero.

Means are taken on the dense model, once, and never updated. A head's contribution is linear in its
z, so the mean of z carries the whole head: mean(z @ W_O) = mean(z) @ W_O.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Ablation, Mean
from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.sublayers import Attention

CHUNK = 64  # prompts a forward pass takes at once, here and in every later stage but the search


@dataclass(frozen=True, eq=False)
class Replacements:
    """The z or output that stands in for a removed component, by layer, in float64.

    z[layer]: (pos, head, d_head). mlp[layer]: (pos, d_model). pos is 1 where the replacement is the
    same at every position.
    """

    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]


def compute_replacements(dense: CircuitModel, patching: Dataset, *, ablation: Ablation, mean: Mean) -> Replacements:
    """Replacements for every component of a dense model, over the patching set.

    `mean="position"` keeps positions apart; `"global"` averages over prompts and positions together.
    Zero ablation needs no data, and has one position whatever `mean` says.
    """
    z: dict[int, Tensor] = {}
    mlp: dict[int, Tensor] = {}
    with torch.inference_mode():
        for input_ids in patching.input_ids.split(CHUNK):
            x = dense.embed(input_ids)
            for step in dense.steps:
                out = x
                for sublayer in step.sublayers:
                    if isinstance(sublayer, Attention):
                        record, seen = z, sublayer.z(x)
                        out = out + sublayer.project(seen)
                    else:
                        record, seen = mlp, sublayer(x)
                        out = out + seen
                    total = seen.sum(dim=0, dtype=torch.float64)  # (pos, ...)
                    record[sublayer.layer] = record.get(sublayer.layer, 0) + total
                x = out
    return Replacements(
        z=tuple(_reduce(z[layer], len(patching), ablation, mean) for layer in sorted(z)),
        mlp=tuple(_reduce(mlp[layer], len(patching), ablation, mean) for layer in sorted(mlp)),
    )


def _reduce(total: Tensor, n_prompts: int, ablation: Ablation, mean: Mean) -> Tensor:
    """Sums over prompts, (pos, ...), to replacements, (pos or 1, ...)."""
    if ablation == "zero":
        return torch.zeros_like(total[:1])
    average = total / n_prompts
    return average if mean == "position" else average.mean(dim=0, keepdim=True)
