"""Units chosen by a simple score at the dense model, cut out at once: magnitude, first-order Taylor, random.

The cut is made as our own search makes it: the same knapsack of worth for parameters, the same means. Each network is
tried as it is, and healed as ours are, on the same prompts after the same teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import Replacements
from exporter.search.allotment import choose_circuit
from exporter.search.cost import count_costs
from exporter.search.gates import finest_sites, run_gated
from exporter.search.gradual import SCORED
from exporter.search.healing import label_loss
from exporter.search.lessons import Lessons
from exporter.search.rounds import MOST_STEPS
from exporter.search.state import copy_state, cut_state, pick_tables
from exporter.studies.contestants.study import Candidate, Study

Score = Callable[[Study], dict[str, Tensor]]
"""What each unit is worth, by site: (unit,) float64."""

_CHUNK = 16


def cut_by_magnitude(study: Study) -> Iterator[Candidate]:
    """Units with large output weights."""
    return cut_by("magnitude", lambda study: score_magnitude(study.dense), study)


def cut_by_taylor(study: Study) -> Iterator[Candidate]:
    """Units without which the loss would change most, to first order."""
    return cut_by("taylor", _score_taylor, study)


def cut_at_random(study: Study) -> Iterator[Candidate]:
    """Any units."""
    return cut_by("random", lambda study: score_randomly(study.dense, study.make_generator(1)), study)


def cut_by(name: str, score: Score, study: Study) -> Iterator[Candidate]:
    """At each size, the network of the units that are worth most by a score, as it is and healed."""
    worth = score(study)
    means = pick_tables(study.replacements, study.start.model)
    for size in study.sizes:
        circuit = choose_circuit(study.start, worth, size, study.costs, lambda _: True)
        state = cut_state(study.start, circuit, means)
        yield Candidate(f"{name} at {100 * size:g}%", study.wrap(state.model), "one cut; original weights")
        healed = copy_state(state)
        steps = study.healer.heal(healed.model, steps=MOST_STEPS, seed=study.plan.job.seed)
        spent = f"one cut; healed for {steps} of {MOST_STEPS} steps, {len(study.healer.lessons):,} prompts"
        yield Candidate(f"{name} at {100 * size:g}%, healed", study.wrap(healed.model), spent)


def score_magnitude(dense: CircuitModel) -> dict[str, Tensor]:
    """The squared norm of each unit's rows of the output projection."""
    worth = {}
    for sublayer in dense.sublayers():
        site, W = sublayer.sites[-1], sublayer.get_parameter(sublayer.out_weight_name)
        worth[site.name] = W.detach().double().unflatten(0, (len(site.units), -1)).square().sum(dim=(1, 2)).cpu()
    return worth


def score_randomly(dense: CircuitModel, generator: torch.Generator) -> dict[str, Tensor]:
    """A random number for each parameter of a unit: heads and neurons have the same chances."""
    return {
        sublayer.sites[-1].name: count_costs(sublayer)[0]
        * torch.rand(len(sublayer.sites[-1].units), generator=generator, dtype=torch.float64)
        for sublayer in dense.sublayers()
    }


def _score_taylor(study: Study) -> dict[str, Tensor]:
    labelled = study.lessons.prompts.is_labelled.nonzero()[:, 0][:SCORED]
    means = pick_tables(study.replacements, study.start.model)
    return score_taylor(study.start.model, study.lessons.take(labelled), means)


def score_taylor(model: CircuitModel, lessons: Lessons, means: Replacements) -> dict[str, Tensor]:
    """How much the loss of the right answers changes without each unit, to first order.

    As in Michel et al. (arXiv 1905.10650): the size of the gradient of a gate between the unit's activation and its
    mean, summed over prompts. Every prompt needs a right answer.
    """
    total = {name: torch.zeros(n, dtype=torch.float64) for name, n in finest_sites(model)}
    for part in lessons.split(_CHUNK):
        gates = {
            name: torch.ones(len(part), n, device=model.W_U.device, requires_grad=True)
            for name, n in finest_sites(model)
        }
        loss = label_loss(part, run_gated(model, part.prompts, means, gates))
        for name, slope in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            total[name] += slope.double().abs().sum(0).cpu()
    return total
