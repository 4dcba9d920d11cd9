"""What a search costs, before it is run: FLOPs, bytes, and how to fit it into memory.

With N prompts of T tokens, width d, MLP width m, H heads of width h, vocabulary V (2 FLOPs a
multiply-add, 4 bytes a number), one pass over P positions of all prompts costs

    MLP                    4 N P d m               (gated: 6 N P d m)
    attention              8 N P d (H h) + 4 N P T (H h)   (keys and values of fewer heads: less)
    unembedding            2 N V d                 (the answer position only)

and a candidate of layer l costs what lies above it: for a head its layer's MLP and every survivor of
higher layers, for an MLP those survivors alone, each over P = T positions up to the topmost surviving
attention and P = 1 from there on, and one unembedding. The dense pass is paid once for each layer.
benchmarks/COST.md has the rest of the formulas, and what they say of models larger than those at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch

from exporter.circuit import Circuit, Head
from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.sublayers import Attention, Step, Sublayer

_NUMBER = 4  # bytes of a float32
_MOST_PROMPTS = 128  # in one chunk: larger matrix products gain nothing more
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """How many prompts are computed at once, and that every `keep_every`-th layer's residual is kept."""

    chunk: int
    keep_every: int
    bytes: int


def count_flops(sublayer: Sublayer, n_prompts: int, pos: int, length: int) -> int:
    """FLOPs of one sublayer's matrix products over `pos` positions that attend to `length`."""
    if isinstance(sublayer, Attention):
        queries = sublayer.W_Q.numel() + sublayer.W_O.numel()  # at `pos` positions, keys and values at all
        keys = sublayer.W_K.numel() + sublayer.W_V.numel()
        return n_prompts * (2 * pos * queries + 2 * length * keys + 4 * pos * length * sublayer.W_Q.shape[1])
    return 2 * n_prompts * pos * sum(p.numel() for p in sublayer.parameters() if p.ndim == 2)


def count_search_flops(dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int) -> int:
    """The FLOPs that a search that ends in `circuit` cannot avoid: what each candidate changes, and no more."""
    return sum(split_search_flops(dense, circuit, n_prompts, length))


def split_search_flops(dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int) -> tuple[int, int]:
    """The same FLOPs apart: of products with many rows, and of those with a row a prompt, which run slower.

    Many rows have MLPs at all positions, attention, and the unembedding of heads that share it: those of a
    layer above which nothing attends.
    """
    unembedding = 2 * n_prompts * dense.W_U.numel()
    many = few = 0
    for n_candidates, tail in _walk_candidates(dense, circuit):
        attends = any(isinstance(s, Attention) for s in tail)
        if attends or n_candidates == 1:
            few += n_candidates * unembedding
        else:
            many += n_candidates * unembedding
        for sublayer, pos, kept, of in _place_tail(tail, circuit, length):
            flops = n_candidates * (count_flops(sublayer, n_prompts, pos, length) * kept // of)
            if pos > 1 or isinstance(sublayer, Attention):
                many += flops
            else:
                few += flops
    return many, few


def count_once_flops(dense: CircuitModel, n_patching: int, n_prompts: int, length: int) -> int:
    """The FLOPs that a search pays once, at most: the means, the dense pass twice, each head's part of the residual.

    The second dense pass is each layer's, when its turn comes; a plan that recomputes residuals adds a third.
    """
    total = 4 * n_prompts * dense.W_U.numel()  # the dense logits, and what P expects of W_U
    for sublayer in dense.sublayers():
        total += count_flops(sublayer, n_patching, length, length)
        total += 2 * count_flops(sublayer, n_prompts, length, length)
        if isinstance(sublayer, Attention):
            total += 2 * n_prompts * length * sublayer.W_O.numel()
    return total


def count_search_bytes(
    dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int, *, chunk: int
) -> tuple[int, int]:
    """Bytes that a search's candidates read of weights, and read and write of activations, one at a time.

    Weights are read once for every `chunk` prompts. A product reads its input and writes its output, and so
    does what is done to each number in turn; caches save some of it, and batched heads of the weights.
    """
    n_chunks = -(-n_prompts // chunk)
    d_vocab = dense.W_U.shape[0]
    weights = activations = 0
    for n_candidates, tail in _walk_candidates(dense, circuit):
        weights += n_candidates * n_chunks * dense.W_U.numel()
        activations += n_candidates * n_prompts * 6 * d_vocab  # logits, minus the base, exp, sum
        for sublayer, pos, kept, of in _place_tail(tail, circuit, length):
            numbers = sum(p.numel() for p in sublayer.parameters())
            weights += n_candidates * n_chunks * numbers * kept // of
            activations += n_candidates * n_prompts * _count_activations(sublayer, pos, length, kept / of)
    return _NUMBER * weights, _NUMBER * activations


def _count_activations(sublayer: Sublayer, pos: int, length: int, share: float) -> int:
    """Numbers of one prompt that a sublayer with some share of its heads reads and writes."""
    if isinstance(sublayer, Attention):
        d_model, width = sublayer.W_Q.shape
        return 5 * length * d_model + 4 * pos * d_model + round(4 * (pos + length) * width * share)
    d_model, d_mlp = sublayer.W_in.shape
    return pos * (7 * d_model + 4 * d_mlp)


def _walk_candidates(dense: CircuitModel, circuit: Circuit) -> Iterator[tuple[int, list[Sublayer]]]:
    """For each step: how many candidates it holds, and the sublayers that each of them runs."""
    for layer, above in _walk_down(dense, circuit):
        for index, step in enumerate(layer):
            n_candidates = sum(len(s.heads) if isinstance(s, Attention) else 1 for s in step.sublayers)
            own = [s for other in layer[index + 1 :] for s in other.sublayers]
            yield n_candidates, [*own, *above]


def _walk_down(dense: CircuitModel, circuit: Circuit) -> Iterator[tuple[list[Step], list[Sublayer]]]:
    """Each layer's steps, from the last, with the sublayers that survive above it."""
    above: list[Sublayer] = []
    for layer in group_by_layer(dense.steps)[::-1]:
        yield layer, above
        kept = [s for step in layer for s in step.sublayers if _survives(s, circuit)]
        above = [*kept, *above]


def _survives(sublayer: Sublayer, circuit: Circuit) -> bool:
    if isinstance(sublayer, Attention):
        return any(circuit.keeps(Head(sublayer.layer, index)) for index in sublayer.heads)
    return sublayer.layer in circuit.mlps


def _place_tail(sublayers: list[Sublayer], circuit: Circuit, length: int) -> Iterator[tuple[Sublayer, int, int, int]]:
    """Some sublayers on the way to the answer position: at how many positions, and how many of how many heads."""
    top = max((i for i, s in enumerate(sublayers) if isinstance(s, Attention)), default=-1)
    for index, sublayer in enumerate(sublayers):
        pos = length if index < top else 1
        if isinstance(sublayer, Attention):
            yield sublayer, pos, len(circuit.heads_of(sublayer.layer)), len(sublayer.heads)
        else:
            yield sublayer, pos, 1, 1


def group_by_layer(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps of each layer, from the first layer to the last."""
    layers: dict[int, list[Step]] = {}
    for step in steps:
        layers.setdefault(step.sublayers[0].layer, []).append(step)
    return [layers[layer] for layer in sorted(layers)]


def plan_memory(dense: CircuitModel, n_prompts: int, length: int, limit: int | None, *, n_steps: int = 1) -> MemoryPlan:
    """Fit a search into `limit` bytes beside the model (default: half of what is free on its device).

    `n_steps` are the answer positions. Keeps the residual before each layer if it can, and else recomputes
    between every few; takes fewer prompts at once where that is not enough. Raises InputError when one prompt
    at a time is too much.
    """
    limit = _find_free(dense.W_U.device) // 2 if limit is None else limit
    d_vocab, d_model = dense.W_U.shape
    n_layers = len(group_by_layer(dense.steps))
    widest = max((s.W_in.shape[1] for s in dense.sublayers() if not isinstance(s, Attention)), default=d_model)
    residual = _NUMBER * n_prompts * length * d_model
    each = _NUMBER * (3 * n_steps * d_vocab + length * (4 * widest + 8 * d_model))  # of a prompt in a chunk
    target = n_prompts * (8 * d_model + 8)
    for keep_every in range(1, math.isqrt(n_layers - 1) + 2):  # from the root on, groups only grow
        kept = -(-n_layers // keep_every) + keep_every
        held = residual * (kept + 6) + target + _SPARE_BYTES  # and z, outputs and a candidate of the layer at hand
        chunk = min((limit - held) // each, n_prompts, _MOST_PROMPTS)
        if chunk >= min(16, n_prompts):
            return MemoryPlan(chunk, keep_every, held + chunk * each)
    if chunk >= 1:
        return MemoryPlan(chunk, keep_every, held + chunk * each)
    raise InputError(
        f"the search needs {(held + each) / 2**20:.0f} MiB beside the model for {n_prompts} prompts, allowed are "
        f"{limit / 2**20:.0f}; raise --memory-limit, or give fewer --selection-prompts"
    )


def _find_free(device: torch.device) -> int:
    """Bytes of memory that are free where a tensor lives."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
