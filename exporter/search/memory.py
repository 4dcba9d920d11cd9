"""Memory plan of a search: prompts per chunk, and activation checkpointing of the dense residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod

import psutil
import torch

from exporter.errors import InputError
from exporter.metrics.divergence import count_target_bytes
from exporter.network.model import CircuitModel
from exporter.network.step import Sublayer
from exporter.search.cost import group_by_layer

_NUMBER = 4  # bytes of a float32
_MOST_PROMPTS = 128  # in one chunk: larger matrix products gain nothing more
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Prompts per chunk, and the distance in layers between kept residuals.

    bytes: what the search is expected to hold beside the model.
    """

    chunk: int
    keep_every: int
    bytes: int


def plan_memory(dense: CircuitModel, n_prompts: int, length: int, limit: int | None, *, n_steps: int = 1) -> MemoryPlan:
    """Fit a search into `limit` bytes beside the model (default: half of the free memory of its device).

    length, n_steps: tokens and answer positions of a prompt. Keeps the residual before every layer if they fit, else
    before every k-th and recomputes the others (Chen et al., arXiv 1604.06174); then makes chunks smaller. Formulas:
    benchmarks/COST.md. Raises InputError: not even one prompt at a time fits.
    """
    limit = _find_free(dense.W_U.device) // 2 if limit is None else limit
    d_vocab, d_model = dense.W_U.shape
    n_layers = len(group_by_layer(dense.steps))
    widest = max(
        (len(s.units) for layer in dense.sublayers() for s in layer.sites if s.kind == "neurons"), default=d_model
    )
    residual = _NUMBER * n_prompts * length * d_model
    each = _NUMBER * (3 * n_steps * d_vocab + length * (4 * widest + 8 * d_model))  # bytes a prompt in a chunk
    target = n_prompts * n_steps * count_target_bytes(d_vocab, d_model)
    for keep_every in range(1, math.isqrt(n_layers - 1) + 2):  # L / k + k is least at k = sqrt(L)
        kept = -(-n_layers // keep_every) + keep_every
        held = residual * (kept + 6) + target + _SPARE_BYTES  # 6: z, outputs and a candidate of the current layer
        chunk = min((limit - held) // each, n_prompts, _MOST_PROMPTS)
        if chunk >= min(16, n_prompts):
            return MemoryPlan(chunk, keep_every, held + chunk * each)
    if chunk >= 1:
        return MemoryPlan(chunk, keep_every, held + chunk * each)
    raise InputError(
        f"the search needs {(held + each) / 2**20:.0f} MiB beside the model for {n_prompts} prompts, allowed are "
        f"{limit / 2**20:.0f}; raise --memory-limit, or give fewer --selection-prompts"
    )


@dataclass(frozen=True)
class LearningPlan:
    """Prompts that go through a network at once with gradients; whether activations are computed again for them."""

    chunk: int
    recompute: bool = False


def plan_learning(dense: CircuitModel, most: int, length: int, limit: int | None, *, n_steps: int = 1) -> LearningPlan:
    """Fit the scores and the healing of a gradual search into `limit` bytes beside the model (default as above).

    most: prompts in a chunk at most. Where two prompts do not fit, activations are computed again, step by step.
    Raises InputError: not even one prompt fits then.
    """
    limit = _find_free(dense.W_U.device) // 2 if limit is None else limit
    d_vocab = len(dense.W_U)
    whole, by_step = (count_kept(dense, length, n_steps * d_vocab, recompute=r) for r in (False, True))
    room = (limit - _SPARE_BYTES) // _NUMBER
    for each, recompute in ((whole, False), (by_step, True)):
        if room >= each * (1 if recompute else 2):
            return LearningPlan(min(most, room // each), recompute)
    raise InputError(
        f"the search needs {(_NUMBER * by_step + _SPARE_BYTES) / 2**20:.0f} MiB beside the model, allowed are "
        f"{limit / 2**20:.0f}; raise --memory-limit"
    )


def count_kept(model: CircuitModel, length: int, n_logits: int, *, recompute: bool) -> int:
    """Numbers that are kept of one prompt of `length` tokens for gradients, with those of its logits, generously."""
    d_model = model.W_E.shape[1]
    sizes = [sum(_count_activations(s, length, d_model) for s in step.sublayers) for step in model.steps]
    kept = max(sizes, default=0) + length * d_model * len(sizes) if recompute else sum(sizes)
    return kept + 6 * n_logits


def _count_activations(sublayer: Sublayer, length: int, d_model: int) -> int:
    """Numbers that a sublayer keeps of one prompt for its gradients, generously: about twice what was measured."""
    site = sublayer.sites[-1]
    if site.kind == "neurons":
        return length * (3 * d_model + 6 * len(site.units))
    width = prod(site.row_shape)
    return length * (3 * d_model + 8 * width + 3 * len(site.units) * length)


def _find_free(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
