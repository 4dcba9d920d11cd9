"""The sizes that a gradual search goes through, as networks without numbers: those of a record, or predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import torch

from exporter.circuit import SizeStep
from exporter.network.model import CircuitModel
from exporter.network.step import Step
from exporter.search.gradual import HEALED, SCORED, SCORED_FIRST, SETUP
from exporter.search.rounds import count_steps
from exporter.search.walk import FIRST, LEAST, RATIO, Walk

_MOST_SETUP = 0.5  # of a small network's price (`SETUP`): so it was in searches of SmolLM2-135M


@dataclass(frozen=True, eq=False)
class Stop:
    """One size on the way, on torch's meta device.

    base: the network that it is cut from; None where the size before it is healed once more. is_first: that is the
    dense model. scored: prompts of the scores. steps, rounds: of healing.
    """

    model: CircuitModel
    base: CircuitModel | None
    is_first: bool
    scored: int
    steps: int
    rounds: int


def predict_path(dense: CircuitModel, *, all_steps: bool = False) -> tuple[SizeStep, ...]:
    """The sizes of a search that keeps its budget everywhere, down to the least, where it is healed once more.

    A size has one round of healing, or with `all_steps` all that it may have. Heads and neurons shrink alike. Figures
    of quality are those of the dense model.
    """
    outline, whole = dense.on_device("meta"), dense.count_parameters()
    totals = [count_units(outline, kind) for kind in ("heads", "neurons")]
    walk, path = Walk(target=FIRST, ratio=RATIO), list[SizeStep]()

    def add(price: float, *, heals: bool, polish: bool = False) -> None:
        setup = min(SETUP * sum(1 for _ in outline.sublayers()), _MOST_SETUP * price)
        heads, neurons = (max(1, round((price - setup) * total)) for total in totals)
        left = spread_units(outline, heads, neurons, length=1).count_parameters()
        steps = count_steps(whole // left)[all_steps or polish] if heals else 0
        path.append(SizeStep(left, heads, neurons, 0.0, 1.0, 0.0, 1.0, steps, True))

    while walk.target >= LEAST:
        heals, price = walk.target <= HEALED, walk.target
        add(price, heals=heals)
        walk.go_on(price, kept=True, judged=heals)
    add(price, heals=True, polish=True)
    return tuple(path)


def follow_path(dense: CircuitModel, path: Sequence[SizeStep], length: int) -> list[Stop]:
    """The sizes of a search as networks, their heads and neurons spread evenly over the layers.

    A circuit whose heads are all in the first layers costs less: the layers above compute the answer positions alone.
    """
    outline, whole = dense.on_device("meta"), dense.count_parameters()
    base, best, failures, seen = outline, outline, 0, set[int]()
    stops = []
    for size in path:
        model = spread_units(outline, size.heads, size.neurons, length=length)
        rounds = ceil(log2(size.steps / count_steps(whole // size.parameters)[0] + 1)) if size.steps else 0
        if size.parameters in seen:
            stops.append(Stop(model, None, False, 0, size.steps, 1))
            continue
        seen.add(size.parameters)
        is_first = base is outline
        scored = SCORED_FIRST if is_first else SCORED
        stops.append(Stop(model, base, is_first, scored, size.steps, rounds))
        unjudged = size.parameters > HEALED * whole and not failures and not size.steps
        best = model if size.kept else best
        base = model if size.kept or unjudged else best
        failures += not (size.kept or unjudged)
    return stops


def spread_units(outline: CircuitModel, heads: int, neurons: int, *, length: int) -> CircuitModel:
    """A model's network with so many of its heads and neurons, the same number in each layer as nearly as may be.

    outline: on the meta device this costs nothing. The network's steps have constants for `length` positions, of zeros.
    """
    n_layers = len({sublayer.layer for sublayer in outline.sublayers()})
    done, steps = {"heads": 0, "neurons": 0}, list[Step]()
    for step in outline.steps:
        kept = []
        for sublayer in step.sublayers:
            site = sublayer.sites[-1]
            wanted = heads if site.kind == "heads" else neurons
            index = done[site.kind]
            done[site.kind] += 1
            n = wanted * (index + 1) // n_layers - wanted * index // n_layers
            if n:
                kept.append(site.keep(site.units[:n]))
        if kept:
            steps.append(Step(kept, torch.zeros(length, outline.W_E.shape[1], device=outline.W_E.device)))
    return outline.replace(steps=steps, length=length)


def count_units(model: CircuitModel, kind: str) -> int:
    """How many heads or neurons a model has."""
    sites = [sublayer.sites[-1] for sublayer in model.sublayers()]
    return sum(len(site.units) for site in sites if site.kind == kind)
