"""Which units stay, given what each is worth and what it costs.

A sublayer costs something however few of its units stay (its norm, and in a runtime a dozen nodes), and that is saved
only where all of it goes. So the choice is a knapsack with set-up costs. With a price of lambda for each unit of cost
it falls apart into sublayers: a unit stays where its worth is more than lambda times its cost, and a sublayer does
where what its units gain is more than lambda times its own cost. Lambda is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Circuit, Head
from exporter.network.sites import Site
from exporter.search.latency import Costs
from exporter.search.state import State


@dataclass(frozen=True, eq=False)
class Offer:
    """The units of one sublayer: worth (unit,) and cost of each, and what the sublayer costs beside them."""

    worth: Tensor
    cost: float
    setup: float


_HALVINGS = 60
_RANGE = 70.0  # of the logarithm of lambda, below the highest rate that there is


def choose_units(offers: Mapping[str, Offer], budget: float) -> dict[str, Tensor]:
    """Which units of each sublayer stay, (unit,) bool, so that all of it costs at most `budget`."""
    highest = max((float((offer.worth / offer.cost).max()) for offer in offers.values()), default=0.0)
    high = math.log(max(highest, 1e-300)) + 1.0  # here nothing stays
    low = high - _RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _weigh(offers, _choose_at(offers, math.exp(middle))) > budget:
            low = middle
        else:
            high = middle
    chosen = _choose_at(offers, math.exp(high))
    _fill_up(offers, chosen, budget)
    return chosen


def choose_circuit(
    base: State, worth: Mapping[str, Tensor], target: float, costs: Costs, is_candidate: Callable[[Site], bool]
) -> Circuit:
    """The circuit of the units of a network that are worth most for what they cost.

    worth: by site, (unit,). target: what they may cost, as a share of the dense model. Units that are no candidates
    stay.
    """
    offers: dict[str, Offer] = {}
    fixed = costs.fixed
    heads: list[Head] = []
    mlps: list[int] = []
    neurons: dict[int, tuple[int, ...]] = {}
    sites = {sublayer.sites[-1].name: sublayer.sites[-1] for sublayer in base.model.sublayers()}
    for sublayer in base.model.sublayers():
        site, (per_unit, setup) = sublayer.sites[-1], costs.of(sublayer)
        if is_candidate(site):
            offers[site.name] = Offer(worth[site.name], per_unit, setup)
        else:
            fixed += per_unit * len(site.units) + setup
    chosen = choose_units(offers, max(0.0, target * costs.whole - fixed))
    for name, site in sites.items():
        stays = chosen[name].tolist() if name in chosen else [True] * len(site.units)
        units = tuple(unit for unit, is_kept in zip(site.units, stays, strict=True) if is_kept)
        if site.kind == "heads":
            heads += [Head(site.layer, unit) for unit in units]
        elif all(stays) and base.circuit.neurons_of(site.layer) is None:
            mlps.append(site.layer)
        elif units:
            neurons[site.layer] = units
    return Circuit(tuple(heads), tuple(mlps), base.circuit.ablation, tuple(neurons.items()))


def _fill_up(offers: Mapping[str, Offer], chosen: dict[str, Tensor], budget: float) -> None:
    """Add what still fits, the worthiest for its cost first: no price of lambda gives every sum of costs."""
    left = budget - _weigh(offers, chosen)
    units = [
        (rate, name, unit)
        for name, offer in offers.items()
        for unit, rate in enumerate((offer.worth / offer.cost).tolist())
    ]
    for rate, name, unit in sorted(units, key=lambda u: -u[0]):
        offer = offers[name]
        cost = offer.cost + (0.0 if bool(chosen[name].any()) else offer.setup)
        if rate > 0 and cost <= left and not bool(chosen[name][unit]):
            chosen[name][unit] = True
            left -= cost


def _choose_at(offers: Mapping[str, Offer], price: float) -> dict[str, Tensor]:
    chosen = {}
    for name, offer in offers.items():
        gain = offer.worth - price * offer.cost
        stays = gain > 0
        chosen[name] = stays if float(gain[stays].sum()) > price * offer.setup else torch.zeros_like(stays)
    return chosen


def _weigh(offers: Mapping[str, Offer], chosen: Mapping[str, Tensor]) -> float:
    return sum(
        offers[name].setup * bool(stays.any()) + offers[name].cost * int(stays.sum()) for name, stays in chosen.items()
    )
