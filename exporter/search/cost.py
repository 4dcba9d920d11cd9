"""What a search costs, before it is run: FLOPs and bytes.

With N prompts of T tokens, width d, MLP width m, H heads of width h, vocabulary V (2 FLOPs a
multiply-add, 4 bytes a number), one pass over P positions of all prompts costs

    MLP                    4 N P d m               (gated: 6 N P d m)
    attention              8 N P d (H h) + 4 N P T (H h)   (keys and values of fewer heads: less)
    unembedding            2 N V d                 (the answer position only)

and a candidate of layer l runs what lies above it: a head its layer's MLP and every surviving sublayer of
higher layers, an MLP those survivors alone, each over P = T positions below the topmost surviving
attention and P = 1 (each answer position) from there on, and one unembedding. `count_once_flops` adds the
dense passes. benchmarks/COST.md has the remaining formulas, measurements, and estimates for larger models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exporter.circuit import Circuit
from exporter.network.model import CircuitModel
from exporter.network.step import Step, Sublayer, find_last_attending

_NUMBER = 4  # bytes of a float32


def count_search_flops(dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int) -> int:
    """FLOPs of all candidates of a search that ends in `circuit`: a lower bound, without repeated evaluations.

    n_prompts, length: of the selection set, length in tokens. Assumes one answer position a prompt.
    """
    return sum(split_search_flops(dense, circuit, n_prompts, length))


def split_search_flops(dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int) -> tuple[int, int]:
    """`count_search_flops` in two parts: matrix products with many rows, and with one row a prompt, which run slower.

    Products with many rows are those of MLPs at all positions, of attention, and of the unembedding of a batch of
    heads; heads are batched where no attention survives above their layer.
    """
    unembedding = 2 * n_prompts * dense.W_U.numel()
    many = few = 0
    for n_candidates, tail in _walk_candidates(dense, circuit):
        attends = find_last_attending(tail) >= 0
        if attends or n_candidates == 1:
            few += n_candidates * unembedding
        else:
            many += n_candidates * unembedding
        for sublayer, pos, kept, of in _place_tail(tail, circuit, length):
            flops = n_candidates * (sublayer.count_flops(n_prompts, pos, length) * kept // of)
            if pos > 1 or sublayer.attends:
                many += flops
            else:
                few += flops
    return many, few


def count_once_flops(dense: CircuitModel, n_patching: int, n_prompts: int, length: int) -> int:
    """FLOPs that a search pays once: the means, two dense passes, each head's contribution to the residual.

    The first dense pass computes the residual before each layer; the second runs each layer again when the search
    comes to it. A plan with `keep_every` > 1 recomputes residuals, a third pass that is not counted here.
    """
    total = 4 * n_prompts * dense.W_U.numel()  # the dense logits, and E = P @ W_U (`KLTarget`), in float64
    for sublayer in dense.sublayers():
        total += sublayer.count_flops(n_patching, length, length)
        total += 2 * sublayer.count_flops(n_prompts, length, length)
        n_units = len(sublayer.sites[0].units)
        if n_units > 1:  # each head's contribution is a separate product z_h @ W_O[h]
            W_O = sublayer.tensors["W_O"]
            total += 2 * n_prompts * length * (0 if W_O is None else W_O.numel())
    return total


def count_search_bytes(
    dense: CircuitModel, circuit: Circuit, n_prompts: int, length: int, *, chunk: int
) -> tuple[int, int]:
    """Bytes of memory traffic of all candidates, each evaluated alone: (weights read, activations read and written).

    Weights are read once for every `chunk` prompts. Every matrix product and every elementwise operation reads its
    input and writes its output. An upper bound: caches save activations, and batched heads share a read of weights.
    """
    n_chunks = -(-n_prompts // chunk)
    d_vocab = dense.W_U.shape[0]
    weights = activations = 0
    for n_candidates, tail in _walk_candidates(dense, circuit):
        weights += n_candidates * n_chunks * dense.W_U.numel()
        activations += n_candidates * n_prompts * 7 * d_vocab  # logits, plus P's, exp, sum
        for sublayer, pos, kept, of in _place_tail(tail, circuit, length):
            numbers = sum(p.numel() for p in sublayer.parameters())
            weights += n_candidates * n_chunks * numbers * kept // of
            activations += n_candidates * n_prompts * sublayer.count_activations(pos, length, kept / of)
    return _NUMBER * weights, _NUMBER * activations


def split_sublayer_flops(sublayer: Sublayer, n_prompts: int, pos: int, length: int) -> tuple[int, int, int]:
    """FLOPs of a sublayer's products with what reads the residual, of those without a weight, and with what writes it.

    pos, length: positions that are computed, and that are attended to.
    """
    whole = sublayer.count_flops(n_prompts, pos, length)
    pattern = sublayer.count_pattern_flops(n_prompts, pos, length)
    output = 2 * n_prompts * pos * sublayer.get_parameter(sublayer.out_weight_name).numel()
    return whole - pattern - output, pattern, output


def count_costs(sublayer: Sublayer) -> tuple[float, int]:
    """The parameters of one unit of the sublayer's finest site, on average, and those that are there beside units.

    Keys and values that several query heads share count in equal parts.
    """
    own = dict(sublayer.named_parameters(recurse=False))
    beside = ("q_norm", "k_norm", sublayer.out_bias_name)
    of_units = sum(tensor.numel() for name, tensor in own.items() if name not in beside)
    total = sum(tensor.numel() for tensor in sublayer.parameters())
    return of_units / len(sublayer.sites[-1].units), total - of_units


def _walk_candidates(dense: CircuitModel, circuit: Circuit) -> Iterator[tuple[int, list[Sublayer]]]:
    """For each step: its number of candidates, and the sublayers that evaluating one of them runs."""
    for layer, above in _walk_down(dense, circuit):
        for index, step in enumerate(layer):
            n_candidates = sum(len(s.sites[0].units) for s in step.sublayers)
            own = [s for other in layer[index + 1 :] for s in other.sublayers]
            yield n_candidates, [*own, *above]


def _walk_down(dense: CircuitModel, circuit: Circuit) -> Iterator[tuple[list[Step], list[Sublayer]]]:
    """Each layer's steps, from the last, with the sublayers that survive above it."""
    above: list[Sublayer] = []
    for layer in group_by_layer(dense.steps)[::-1]:
        yield layer, above
        kept = [s for step in layer for s in step.sublayers if s.site_for(circuit).kept(circuit)]
        above = [*kept, *above]


def _place_tail(sublayers: list[Sublayer], circuit: Circuit, length: int) -> Iterator[tuple[Sublayer, int, int, int]]:
    """Each sublayer with the number of positions that it computes, its kept units, and all its units."""
    top = find_last_attending(sublayers)
    for index, sublayer in enumerate(sublayers):
        site = sublayer.site_for(circuit)
        kept = len(site.kept(circuit))
        if not sublayer.attends:  # a removed MLP is in the list only for heads of its own layer, when it is still whole
            kept = kept or len(site.units)
        yield sublayer, length if index < top else 1, kept, len(site.units)


def group_by_layer(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps of each layer, from the first layer to the last."""
    layers: dict[int, list[Step]] = {}
    for step in steps:
        layers.setdefault(step.sublayers[0].layer, []).append(step)
    return [layers[layer] for layer in sorted(layers)]
