"""What units and sublayers cost: counted in parameters, or measured in milliseconds where the budget bounds latency.

A file of thirty layers with a few neurons each is small and not fast: every sublayer takes its dozen nodes. So before a
search under a latency budget, small networks are cut out of the dense model and timed as they would be exported: a few
sublayers of one kind at several widths, below one attention head in the last layer, since what lies above all attention
is computed for the last position only. A line is fitted to each kind, so much for a sublayer and so much for a unit.
The lines price what is cut next; whether the budget is kept is decided by timing the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from exporter.circuit import Circuit, Head, LatencyTable, TimedNetwork
from exporter.errors import InputError
from exporter.network.model import CircuitModel
from exporter.network.step import Sublayer
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.cost import count_costs
from exporter.search.problem import Problem
from exporter.search.rules import Bounds, Budget
from exporter.search.state import State, select_tables

FEW = 3  # sublayers of a kind in a network that is timed
WIDTHS = (0.0, 0.125, 0.5, 1.0)  # of their units, and at least one
LEAST_UNIT = 1e-9  # of the dense model: a unit costs something, also where the clock does not tell
SLACK = 0.1  # of a bound in milliseconds, for what is measured again
NEAREST = 0.97  # of a goal: the next one is lower at least by so much


@dataclass(frozen=True, eq=False)
class Costs:
    """What a network costs, in parameters or milliseconds; its share is that of the dense model.

    whole: the dense model's. fixed: what no cut saves. of: for a sublayer, that of each unit, and its own beside them.
    """

    whole: float
    fixed: float
    of: Callable[[Sublayer], tuple[float, float]]

    def price(self, model: CircuitModel) -> float:
        """The cost of a network, as a share of the dense model's."""
        return (self.fixed + self._add_up(model)) / self.whole

    def _add_up(self, model: CircuitModel) -> float:
        prices = ((self.of(sublayer), len(sublayer.sites[-1].units)) for sublayer in model.sublayers())
        return sum(per_unit * n_units + setup for (per_unit, setup), n_units in prices)


def count_in_parameters(dense: CircuitModel, *, setup: float) -> Costs:
    """Costs in parameters; each sublayer costs `setup`, a share of the dense model's, beside them."""
    size = dense.count_parameters()

    def count(sublayer: Sublayer) -> tuple[float, float]:
        per_unit, beside = count_costs(sublayer)
        return per_unit, beside + setup * size

    return Costs(size, sum(parameter.numel() for parameter in dense.final_norm.parameters()), count)


def read_costs(table: LatencyTable, dense: CircuitModel) -> Costs:
    """Costs in milliseconds: of all sublayers, since embedding and unembedding stay whatever is cut."""
    plain = Costs(1.0, 0.0, lambda sublayer: (table.unit_ms[sublayer.kind], table.sublayer_ms[sublayer.kind]))
    whole = max(plain.price(dense), 1e-9)

    def read(sublayer: Sublayer) -> tuple[float, float]:
        per_unit, beside = plain.of(sublayer)
        return max(per_unit, LEAST_UNIT * whole), beside

    return Costs(whole, 0.0, read)


class Meter:
    """Prices the networks of a search, and says which of them are small and fast enough.

    table: what sublayers take, where latency is bounded. goal: the share of the dense model's cost at which the search
    ends where quality is not bounded, else 0. Raises InputError: more time is needed for no sublayer at all.
    """

    def __init__(self, problem: Problem, budget: Budget, bounds: Bounds, *, setup: float) -> None:
        self.problem, self.bounds = problem, bounds
        begun = problem.checkpoint
        self.table = None if begun is None else begun.table
        if budget.max_latency_ms is not None and budget.max_params is None:  # parameters are counted exactly
            if self.table is None:
                table = measure(problem) if problem.ranks.leads else None
                self.table = cast("LatencyTable", problem.ranks.share(table))
            _require_feasible(self.table, bounds.max_latency_ms)
            self.costs = read_costs(self.table, problem.dense)
            goal = max(0.0, bounds.max_latency_ms - self.table.rest_ms) / self.costs.whole
        else:
            self.costs = count_in_parameters(problem.dense, setup=setup)
            goal = bounds.max_params / self.costs.whole
        self.goal = 0.0 if budget.bounds_quality else goal if begun is None else begun.goal
        self._timed: dict[Circuit, float] = {}

    def time(self, state: State) -> float:
        """Milliseconds of a network as a file, as rank 0 measures it the first time; 0 where latency is not bounded."""
        time, ranks = self.problem.time, self.problem.ranks
        if math.isinf(self.bounds.max_latency_ms) or time is None:
            return 0.0
        if state.circuit not in self._timed:
            self._timed[state.circuit] = cast(
                "float", ranks.share(time(state.model.on_device("cpu")) if ranks.leads else None)
            )
        return self._timed[state.circuit]

    def keeps(self, state: State) -> bool:
        """Whether a network is small and fast enough. Where one at the goal is not, the goal becomes a lower one."""
        n_parameters, ms = state.model.count_parameters(), self.time(state)
        if self.bounds.keeps_cost(n_parameters, ms):
            return True
        price = self.costs.price(state.model)
        if price <= self.goal * (1 + 1e-9):
            over, rest_ms = n_parameters / self.bounds.max_params, 0.0 if self.table is None else self.table.rest_ms
            if (most := self.bounds.max_latency_ms - rest_ms) > 0:
                over = max(over, (ms - rest_ms) / most)
            self.goal = price * min(NEAREST, 1 / over)
        return False


def _require_feasible(table: LatencyTable, most: float) -> None:
    """Raise InputError where even the fastest network that was timed takes clearly longer than is allowed."""
    if (least := min(network.ms for network in table.timed)) > (1 + SLACK) * most:
        raise InputError(
            f"no circuit keeps max_latency_ms {most:g}: embedding and unembedding alone take {least:.3g} ms a call "
            "here; allow more, or leave out tokens (--logits answers, --vocab task)"
        )


def measure(problem: Problem) -> LatencyTable:
    """Time some networks of the dense model's sublayers, ten at most, and fit a line to each kind of sublayer."""
    assert problem.time is not None
    timed = []
    for widths in plan_networks(problem.dense):
        circuit = _keep_some(problem, widths)
        network = slice_model(problem.dense, Surgery(circuit, select_tables(problem.replacements, circuit)))
        sublayers: dict[str, int] = {}
        units: dict[str, int] = {}
        for sublayer in network.sublayers():
            sublayers[sublayer.kind] = sublayers.get(sublayer.kind, 0) + 1
            units[sublayer.kind] = units.get(sublayer.kind, 0) + len(sublayer.sites[-1].units)
        timed.append(TimedNetwork(sublayers, units, problem.time(network.on_device("cpu"))))
    return fit_table(timed)


def plan_networks(dense: CircuitModel) -> list[dict[str, int]]:
    """The networks to time, each as how many units it keeps of which sites; all others are removed."""
    sublayers = list(dense.sublayers())
    top = [sublayer for sublayer in sublayers if sublayer.attends][-1].sites[-1]
    base = {top.name: 1}
    networks: list[dict[str, int]] = [{}, base]
    for kind in sorted({sublayer.kind for sublayer in sublayers}):
        sites = [sublayer.sites[-1] for sublayer in sublayers if sublayer.kind == kind]
        below = [site for site in sites if site.layer < top.layer][:FEW] or sites[-1:]
        networks += [base | {site.name: max(1, int(share * len(site.units))) for site in below} for share in WIDTHS]
    return [network for index, network in enumerate(networks) if network not in networks[:index]]


def fit_table(timed: list[TimedNetwork]) -> LatencyTable:
    """Non-negative least squares of relative errors: the smallest and the largest networks count alike."""
    from scipy.optimize import nnls

    kinds = sorted({kind for network in timed for kind in network.sublayers})
    rows = [
        [1.0, *(n.sublayers.get(kind, 0) for kind in kinds), *(n.units.get(kind, 0) for kind in kinds)] for n in timed
    ]
    ms = np.array([network.ms for network in timed])
    matrix = np.array(rows) / ms[:, None]
    scale = matrix.max(axis=0)
    fitted = (nnls(matrix / scale, np.ones(len(ms)))[0] / scale).tolist()
    of_sublayers, of_units = fitted[1 : 1 + len(kinds)], fitted[1 + len(kinds) :]
    return LatencyTable(fitted[0], _by_kind(kinds, of_sublayers), _by_kind(kinds, of_units), tuple(timed))


def _by_kind(kinds: list[str], values: list[float]) -> Mapping[str, float]:
    return dict(zip(kinds, values, strict=True))


def _keep_some(problem: Problem, widths: Mapping[str, int]) -> Circuit:
    """The circuit of the first units of some sites."""
    heads: list[Head] = []
    neurons: dict[int, tuple[int, ...]] = {}
    for sublayer in problem.dense.sublayers():
        site = sublayer.sites[-1]
        units = site.units[: widths.get(site.name, 0)]
        if site.kind == "heads":
            heads += [Head(site.layer, unit) for unit in units]
        elif units:
            neurons[site.layer] = units
    return Circuit(tuple(heads), (), problem.replacements.ablation, tuple(neurons.items()))
