"""Where a model's heads look: attention patterns of one prompt, with how much each head writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Head
from exporter.network.attention import Attention, HeadSite
from exporter.network.model import CircuitModel
from exporter.network.step import Step


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """One head on one prompt.

    weights: (query, key), rows sum to 1. written: the norm of what it adds to the residual, its mean over positions.
    """

    head: Head
    weights: Tensor
    written: float


@torch.inference_mode()
def read_patterns(model: CircuitModel, input_ids: Tensor) -> list[HeadPattern]:
    """The patterns of every head that a model holds, for one prompt without padding: (1, pos) int64.

    Raises InputError as `CircuitModel.place` does.
    """
    at = model.place(input_ids)
    x, found = model.embed(input_ids, at), []
    for step in map(Step.load, model.steps):
        for sublayer in step.sublayers:
            if isinstance(sublayer, Attention):
                weights, rows = sublayer.pattern(x, at)[0], HeadSite(sublayer).rows_by_head
                written = torch.einsum("phd,hdm->phm", sublayer.z(x, at)[0], rows).norm(dim=-1).mean(0)  # (head,)
                found += [
                    HeadPattern(Head(sublayer.layer, index), weights[place], float(written[place]))
                    for place, index in enumerate(sublayer.heads)
                ]
        x = step(x, at)
    return found
