"""What a removed component is replaced by: its mean over the patching set, or zero.

Means are taken on the dense model, once, and never updated. A head's contribution is linear in its
z, so the mean of z carries the whole head: mean(z @ W_O) = mean(z) @ W_O. Padding counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Ablation, Align, Mean
from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.positions import Positions
from exporter.sublayers import Attention

CHUNK = 64  # prompts a forward pass takes at once, here and in every later stage but the search


@dataclass(frozen=True, eq=False)
class Replacements:
    """The z or output that stands in for a removed component, by layer, in float64.

    z[layer]: (pos, head, d_head). mlp[layer]: (pos, d_model). pos is 1 where the replacement is the
    same at every position, and is counted from the end that `align` names.
    """

    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    align: Align = "left"


@torch.inference_mode()
def compute_replacements(
    dense: CircuitModel, patching: Dataset, *, ablation: Ablation, mean: Mean, align: Align = "left"
) -> Replacements:
    """Replacements for every component of a dense model, over the patching set.

    `mean="position"` keeps positions apart, counted from the first token or from the last as `align` says; one
    that no prompt has takes the mean over all. `"global"` averages over prompts and positions together. Zero
    ablation needs no data, and has one position whatever `mean` says.
    """
    dense = dense.replace(align=align)
    z: dict[int, _Mean] = {}
    mlp: dict[int, _Mean] = {}
    for part in patching.split(CHUNK):
        at = dense.place(part.input_ids, part.mask, length=patching.length)
        x = dense.embed(part.input_ids, at)
        for step in dense.steps:
            step = step.load()
            x, here = x.to(step.device), at.to(x.device if step.device is None else step.device)
            out = x
            for sublayer in step.sublayers:
                if isinstance(sublayer, Attention):
                    record, seen = z, sublayer.z(x, here)
                    out = out + sublayer.project(seen)
                else:
                    record, seen = mlp, sublayer(x, here)
                    out = out + seen
                record.setdefault(sublayer.layer, _Mean(patching.length, seen)).add(seen, here)
            x = out
    return Replacements(
        z=tuple(z[layer].reduce(ablation, mean) for layer in sorted(z)),
        mlp=tuple(mlp[layer].reduce(ablation, mean) for layer in sorted(mlp)),
        align=align,
    )


class _Mean:
    """A running sum of (batch, pos, ...) values by position, on the CPU in float64."""

    def __init__(self, length: int, like: Tensor) -> None:
        self.total = torch.zeros(length, *like.shape[2:], dtype=torch.float64)  # (pos, ...)
        self.n = torch.zeros(length, dtype=torch.float64)  # prompts that have this position

    def add(self, seen: Tensor, at: Positions) -> None:
        """Take in the values at some positions, but for padding."""
        if at.mask is None:
            rows = at.rows[0].cpu()  # the same for every prompt
            self.total[rows] += seen.sum(dim=0, dtype=torch.float64).cpu()
            self.n[rows] += len(seen)
        else:
            rows = at.rows[at.mask].cpu()  # (token,)
            self.total.index_add_(0, rows, seen[at.mask].double().cpu())
            self.n.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))

    def reduce(self, ablation: Ablation, mean: Mean) -> Tensor:
        """Replacements, (pos or 1, ...)."""
        if ablation == "zero":
            return torch.zeros_like(self.total[:1])
        n = self.n.view(-1, *(1 for _ in self.total.shape[1:]))  # (pos, 1, ...)
        overall = self.total.sum(dim=0, keepdim=True) / n.sum()
        return overall if mean == "global" else torch.where(n > 0, self.total / n.clamp(min=1), overall)
