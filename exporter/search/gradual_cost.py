"""What a gradual search with healing costs, before it is run: FLOPs and bytes, of one rank of several.

Counted are matrix products, 2 FLOPs a multiply-add. One pass of N prompts to their answer positions takes F: I in the
products that read the residual, A in attention's two that have no weight, O in those that write it. The unembedding
takes U = 2 N S V d for S answer positions. With I1 and A1 those of the first step, before which nothing is learnt:

    means        F, with all positions computed to the end
    scores       forward F + U;  backward F + A + U - I1 - 2 A1: gradients of activations, none of weights
    a step       forward F, backward 2 F - I1: of activations and weights; of U a shortlist and a sample, twice
    a judgement  F + 2 U: the dense model's logits are made of its residual again
    a look       F, and of U the shortlist and a larger sample, on the prompts kept aside

`recompute` adds F to each backward, without the last product of each step. Ranks share the prompts of scores and steps;
each does everything else itself. Where prompts differ in length the longest counts for all: an upper bound.

Bytes, 4 a number: the dense model; its residuals at the answer positions, 3 times (the caller's, the search's, and a
copy while the shortlist is made); the shortlist's log-probabilities, twice; means in float64; the network that is cut
and the one that is healed. Beside them the scores keep activations of a chunk of prompts; healing those of a batch, and
of every weight that learns a gradient, AdamW's two moments, the best values so far and the next ones (or, of several
ranks, the gradients as one vector). Activations are those that `plan_learning` reckons with, generously.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

from exporter.network.model import CircuitModel
from exporter.network.step import find_last_attending
from exporter.search.cost import split_sublayer_flops
from exporter.search.gates import list_trained
from exporter.search.gradual_path import Stop, count_units, spread_units
from exporter.search.healing import BATCH, LOOKS
from exporter.search.judging import CHUNK
from exporter.search.lessons import count_aside
from exporter.search.memory import LearningPlan, count_kept
from exporter.search.shortlist import SAMPLED, SAMPLED_TO_JUDGE

_NUMBER, _DOUBLE = 4, 8  # bytes
_CHUNKS = LearningPlan(CHUNK)
_OF_A_WEIGHT = 5  # numbers beside a weight that learns: gradient, two moments, best so far, next best


@dataclass(frozen=True)
class Work:
    """What a gradual search works on.

    patching, selection: how many prompts. length, n_steps: tokens and answer positions of each. entries: of the
    shortlist, tokens that the dense model finds likely behind some prompt. plan: how they go through a network.
    n_ranks: processes that share them.
    """

    patching: int
    selection: int
    length: int
    n_steps: int = 1
    entries: int = 1000
    plan: LearningPlan = _CHUNKS
    n_ranks: int = 1

    @property
    def aside(self) -> int:
        """How many patching prompts are kept aside."""
        return count_aside(self.patching)

    @property
    def lessons(self) -> int:
        """How many patching prompts are learnt from."""
        return self.patching - self.aside


def count_gradual_flops(dense: CircuitModel, stops: Sequence[Stop], work: Work) -> dict[str, int]:
    """FLOPs of a search on one rank, by part. stops: the sizes on its way, from `follow_path`."""
    # beside the means: log-probabilities of the lessons for the constant's KL, and of all prompts twice for the
    # shortlist; logits of the selection set twice to judge the dense model, and once to judge the constant
    n_unembedded = work.lessons + 2 * work.patching + 3 * work.selection
    flops = {"dense": count_means_flops(dense, work.patching, work) + n_unembedded * _unembed(dense, work)}
    flops["dense"] += count_pass_flops(dense, work.selection, work)
    flops |= dict.fromkeys(("scores", "means", "healing", "judging"), 0)
    for stop in stops:
        scored = min(stop.scored, work.lessons)
        if stop.base is not None:
            flops["scores"] += scored * _unembed(dense, work)  # tokens are drawn
            flops["scores"] += count_scores_flops(stop.base, ceil(scored / work.n_ranks), work)
            flops["means"] += 0 if stop.is_first else count_means_flops(stop.base, scored, work)
        looks = stop.rounds * (LOOKS + 1) * count_look_flops(stop.model, work)
        flops["healing"] += stop.steps * count_step_flops(stop.model, work) + looks
        flops["judging"] += (1 + stop.rounds) * count_judging_flops(stop.model, work.selection, work)
    return flops


def count_pass_flops(model: CircuitModel, n: int, work: Work) -> int:
    """One pass of n prompts to their answer positions."""
    return sum(sum(parts) for parts in _split_pass(model, n, work))


def count_means_flops(model: CircuitModel, n: int, work: Work) -> int:
    """The means of every unit over n prompts, at all positions."""
    return sum(sublayer.count_flops(n, work.length, work.length) for sublayer in model.sublayers())


def count_scores_flops(model: CircuitModel, n: int, work: Work) -> int:
    """The scores of every unit on n prompts, without the tokens that are drawn."""
    passes = list(_split_pass(model, n, work))
    flops = sum(2 * inputs + 3 * pattern + 2 * outputs for inputs, pattern, outputs in passes)
    for inputs, pattern, _ in passes[:1]:
        flops -= inputs + 2 * pattern
    return flops + _count_again(model, n, work) + 2 * n * _unembed(model, work)


def count_step_flops(model: CircuitModel, work: Work) -> int:
    """One step of healing, on a rank's share of a batch."""
    n = ceil(min(BATCH, work.lessons) / work.n_ranks)
    passes = list(_split_pass(model, n, work))
    flops = 3 * sum(map(sum, passes)) - sum(inputs for inputs, *_ in passes[:1])
    flops += _count_again(model, n, work)
    return flops + 4 * n * work.n_steps * _count_entries(model, work) * model.W_U.shape[1]


def count_look_flops(model: CircuitModel, work: Work) -> int:
    """A look at the prompts kept aside."""
    entries = _count_entries(model, work, SAMPLED_TO_JUDGE)
    return count_pass_flops(model, work.aside, work) + 2 * work.aside * work.n_steps * entries * model.W_U.shape[1]


def count_judging_flops(model: CircuitModel, n: int, work: Work) -> int:
    """A network's answers on n prompts, and the dense model's."""
    return count_pass_flops(model, n, work) + 2 * n * _unembed(model, work)


def count_gradual_bytes(dense: CircuitModel, stops: Sequence[Stop], work: Work) -> dict[str, int]:
    """The most bytes that one rank holds in each part: `scores`, `healing`; and what is always there, `dense`."""
    always = _weigh(dense) + count_teacher_bytes(dense, work) + _count_tables(dense, work.length)
    scores = healing = 0
    for stop in stops:
        cut_from = 0 if stop.base is None or stop.is_first else _weigh_steps(stop.base)
        if stop.base is not None:
            scores = max(scores, cut_from + count_scores_bytes(stop.base, work))
        if stop.steps:
            own = _weigh_steps(stop.model)
            healing = max(healing, (cut_from or own) + own + count_healing_bytes(stop.model, work))
    return {"dense": always, "scores": always + scores, "healing": always + healing}


def count_teacher_bytes(dense: CircuitModel, work: Work) -> int:
    """What is kept of the dense model's answers."""
    residuals = (3 * work.patching + work.selection) * dense.W_U.shape[1]
    return _NUMBER * work.n_steps * (residuals + 2 * work.patching * (work.entries + 1))


def count_scores_bytes(model: CircuitModel, work: Work) -> int:
    """What the scores keep beside a network: means, activations of a chunk, and a gate and its gradient for each unit.

    The means of a network that is the dense model are there already, and are counted twice.
    """
    n_units = sum(len(sublayer.sites[-1].units) for sublayer in model.sublayers())
    kept = count_kept(model, work.length, work.n_steps * len(model.W_U), recompute=work.plan.recompute)
    return _count_tables(model, work.length) + _NUMBER * work.plan.chunk * (kept + 2 * n_units)


def count_healing_bytes(model: CircuitModel, work: Work) -> int:
    """What healing keeps beside a network: of every weight that learns, and activations of a share of a batch."""
    n = min(work.plan.chunk, ceil(BATCH / work.n_ranks))
    kept = count_kept(model, work.length, work.n_steps * _count_entries(model, work), recompute=work.plan.recompute)
    return _NUMBER * (_OF_A_WEIGHT * sum(p.numel() for p in list_trained(model)) + n * kept)


def find_largest_healed(dense: CircuitModel, work: Work, limit: int) -> float:
    """The largest share of a dense model's units that can be healed in so many bytes, to 1 %; 0 where none can."""
    outline = dense.on_device("meta")
    always = _weigh(dense) + count_teacher_bytes(dense, work) + _count_tables(dense, work.length)
    low, high = 0, 100

    def fits(share: int) -> bool:
        units = [count_units(outline, kind) * share // 100 for kind in ("heads", "neurons")]
        model = spread_units(outline, *units, length=work.length)
        return always + _weigh_steps(model) + count_healing_bytes(model, work) <= limit

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low / 100


def _split_pass(model: CircuitModel, n: int, work: Work) -> Iterator[tuple[int, int, int]]:
    """Each step's FLOPs in a pass to the answer positions: what reads the residual, patterns, what writes it."""
    for parts in _split_sublayers(model, n, work):
        inputs, pattern, outputs = (sum(part) for part in zip(*parts, strict=True))
        yield inputs, pattern, outputs


def _split_sublayers(model: CircuitModel, n: int, work: Work) -> Iterator[list[tuple[int, int, int]]]:
    """The same of each of a step's sublayers."""
    last = find_last_attending(model.steps)
    for index, step in enumerate(model.steps):
        pos = work.length if index < last else work.n_steps
        yield [split_sublayer_flops(sublayer, n, pos, work.length) for sublayer in step.sublayers]


def _count_again(model: CircuitModel, n: int, work: Work) -> int:
    """What is computed again for gradients: torch stops before a step's last product, whose inputs are all it needs."""
    if not work.plan.recompute:
        return 0
    return sum(sum(map(sum, parts)) - parts[-1][-1] for parts in _split_sublayers(model, n, work))


def _count_entries(model: CircuitModel, work: Work, sampled: int = SAMPLED) -> int:
    """Tokens whose logits are computed on a shortlist: those of a step of healing."""
    return min(work.entries + sampled, len(model.W_U))


def _unembed(model: CircuitModel, work: Work) -> int:
    return 2 * work.n_steps * model.W_U.numel()


def _count_tables(model: CircuitModel, length: int) -> int:
    """Bytes of the means of every site."""
    shapes = [site.row_shape for sublayer in model.sublayers() for site in sublayer.sites]
    return _DOUBLE * length * sum(map(prod, shapes))


def _weigh(model: CircuitModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _weigh_steps(model: CircuitModel) -> int:
    return sum(p.numel() * p.element_size() for step in model.steps for p in step.parameters())
