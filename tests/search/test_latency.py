"""The table of latencies: what is timed and fitted, and how a search goes by it. No real clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, LatencyTable, SearchRecord
from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import compute_replacements
from exporter.search.find import search_surgery
from exporter.search.latency import Costs, count_in_parameters, measure, plan_networks, read_costs
from exporter.search.problem import Problem
from exporter.search.ranks import Ranks
from exporter.search.rules import Budget

SUBLAYER, UNIT = {"attention": 0.5, "mlp": 0.25}, {"attention": 0.125, "mlp": 0.01}
REST = 0.75


def count(model: CircuitModel) -> list[tuple[str, int]]:
    return [(sublayer.kind, len(sublayer.sites[-1].units)) for sublayer in model.sublayers()]


@dataclass
class FakeClock:
    """Milliseconds by a line, of which it keeps the networks that it was asked about."""

    sublayer: Mapping[str, float] = field(default_factory=lambda: SUBLAYER)
    unit: Mapping[str, float] = field(default_factory=lambda: UNIT)
    bend: Callable[[float], float] = lambda ms: ms
    timed: list[list[tuple[str, int]]] = field(default_factory=list)

    def __call__(self, model: CircuitModel) -> float:
        self.timed.append(count(model))
        return self.bend(REST + sum(self.sublayer[kind] + n * self.unit[kind] for kind, n in count(model)))


def make_problem(model: LanguageModel, time: Callable[[CircuitModel], float], **options: Any) -> Problem:
    prompts, layers = make_prompts(8, 6, seed=1), {sublayer.layer for sublayer in model.dense.sublayers()}
    means = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons=layers)
    rule = Budget(max_latency_ms=1.0)
    return Problem(model.dense, means, prompts, rule, patching=prompts, time=time, **options)


@pytest.mark.parametrize("family", VARIANTS)
@pytest.mark.parametrize("n_layers", [1, 2, 6])
def test_the_table_is_the_line_that_was_timed(family: str, n_layers: int) -> None:
    clock = FakeClock()
    table = measure(make_problem(make_model(family, n_layers=n_layers, n_heads=4, d_mlp=24), clock))
    assert len(table.timed) == len(clock.timed) <= 10
    assert max(len(network) for network in clock.timed) <= 4
    assert table.rest_ms == pytest.approx(REST)
    assert table.sublayer_ms == pytest.approx(SUBLAYER)
    assert table.unit_ms == pytest.approx(UNIT)
    assert LatencyTable.from_json(table.to_json()) == table


def test_networks_have_attention_above_what_is_timed() -> None:
    networks = plan_networks(make_model(n_layers=6, n_heads=4, d_mlp=24).dense)
    assert networks[:2] == [{}, {"heads.5": 1}]
    assert networks[-2] == {"heads.5": 1, "neurons.0": 12, "neurons.1": 12, "neurons.2": 12}
    assert all("heads.5" in network for network in networks[1:])


def test_both_costs_add_up_to_the_dense_model() -> None:
    dense = make_model("llama", n_layers=3, n_heads=4, d_mlp=24, num_key_value_heads=2).dense
    by_size = count_in_parameters(dense, setup=0.01)
    assert by_size.price(dense) == pytest.approx(1 + 6 * 0.01)
    assert by_size.price(dense.replace(steps=[])) * by_size.whole == sum(
        parameter.numel() for parameter in dense.final_norm.parameters()
    )
    table = LatencyTable(REST, SUBLAYER, UNIT)
    by_clock = read_costs(table, dense)
    assert by_clock.price(dense) == pytest.approx(1)
    assert by_clock.whole == pytest.approx(3 * (0.5 + 4 * 0.125 + 0.25 + 24 * 0.01))
    assert by_clock.price(dense.replace(steps=[])) == 0


def test_a_unit_whose_time_no_clock_tells_costs_something() -> None:
    dense = make_model().dense
    costs: Costs = read_costs(LatencyTable(REST, SUBLAYER, {"attention": 0.0, "mlp": 0.0}), dense)
    assert all(costs.of(sublayer)[0] > 0 for sublayer in dense.sublayers())


def search(clock: FakeClock, budget: Budget, **options: Any) -> tuple[Circuit, SearchRecord, float]:
    """Circuit, record and what the clock says of a network like it; not healed."""
    model = make_model(n_layers=4, n_heads=4, d_mlp=32, seed=5)
    sets = make_prompts(40, 6, seed=1), make_prompts(20, 6, seed=2)
    surgery, record = search_surgery(model, *sets, rule=budget, heal="none", time=clock, **options)
    units: dict[tuple[str, int], int] = {}
    for head in surgery.circuit.heads:
        units["attention", head.layer] = units.get(("attention", head.layer), 0) + 1
    units |= {("mlp", layer): 32 for layer in surgery.circuit.mlps}
    units |= {("mlp", layer): len(left) for layer, left in surgery.circuit.neurons}
    ms = REST + sum(clock.sublayer[kind] + n * clock.unit[kind] for (kind, _), n in units.items())
    return surgery.circuit, record, clock.bend(ms)


def count_mlps(circuit: Circuit) -> int:
    return len(circuit.mlps) + len(circuit.neurons)


def test_slivers_of_mlps_go_as_a_whole() -> None:
    """At the same time as measured, where nodes cost more than arithmetic: fewer sublayers, which are whole."""
    clock = FakeClock(sublayer={"attention": 0.5, "mlp": 0.5}, unit={"attention": 1e-3, "mlp": 1e-4})
    circuit, record, ms = search(clock, Budget(max_latency_ms=3.0))
    assert 2.5 < ms <= 3.0  # four sublayers of eight: the largest network that keeps it
    assert record.latency is not None and record.latency.sublayer_ms["mlp"] == pytest.approx(0.5)
    assert SearchRecord.from_json(record.to_json()) == record
    by_size, _, slower = search(FakeClock(), Budget(max_params=str(record.path[-1].parameters)))
    assert count_mlps(circuit) + len({h.layer for h in circuit.heads}) == 4
    assert count_mlps(by_size) + len({h.layer for h in by_size.heads}) > 4
    assert all(len(left) > 24 for _, left in circuit.neurons)
    assert slower > ms


def test_a_budget_is_kept_by_the_network_itself_where_the_table_says_too_little() -> None:
    """Networks larger than those that are timed first take half as long again as the line says."""
    clock = FakeClock(bend=lambda ms: ms if ms < 4.5 else 1.5 * ms)
    circuit, record, ms = search(clock, Budget(max_latency_ms=5.0))
    assert len(record.path) == 3  # the second aims at 5 ms, and takes 7.5
    assert 3.0 < ms <= 5.0
    assert circuit.heads


def test_parameters_and_milliseconds_are_both_kept() -> None:
    _, record, ms = search(FakeClock(), Budget(max_latency_ms=4.0, max_params="10%"))
    assert ms <= 4.0
    assert record.path[-1].parameters <= 0.1 * make_model(n_layers=4, n_heads=4, d_mlp=32).dense.count_parameters()


def test_a_network_that_is_fast_enough_stays_nearly_whole() -> None:
    _, record, ms = search(FakeClock(), Budget(max_latency_ms=100.0))
    assert len(record.path) == 1
    assert ms > 4.0


@pytest.mark.parametrize("more", [{}, {"max_kl": 100.0}])
def test_milliseconds_that_nothing_keeps_are_refused_with_the_nearest(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"keeps .*max_latency_ms 0.74.*; the nearest has .* [0-9.]+ ms a call, acc"):
        search(FakeClock(), Budget(max_latency_ms=0.74, **more))


def test_less_than_embedding_and_unembedding_take_is_refused_before_the_search() -> None:
    clock = FakeClock()
    with pytest.raises(InputError, match=r"no circuit keeps max_latency_ms 0.5: .* alone take 0.75 ms a call here"):
        search(clock, Budget(max_latency_ms=0.5))
    assert len(clock.timed) == 9  # the table's


def test_quality_and_milliseconds_are_both_kept_or_refused() -> None:
    _, record, ms = search(FakeClock(), Budget(max_latency_ms=4.0, max_kl=100.0))
    assert ms <= 4.0
    assert record.kl is not None and record.kl <= 100
    with pytest.raises(InputError, match=r"the nearest has .* ms a call"):
        search(FakeClock(), Budget(max_latency_ms=1.0, max_kl=0.5))


def test_a_network_is_timed_once() -> None:
    clock = FakeClock()
    _, record, _ = search(clock, Budget(max_latency_ms=3.0))
    assert record.latency is not None
    assert len(clock.timed) == len(record.latency.timed) + len(record.path)


def test_other_ranks_go_by_what_rank_0_has_timed() -> None:
    shared: list[object] = []

    class Leader(Ranks):
        def share(self, value: object) -> object:
            shared.append(value)
            return value

    class Follower(Ranks):
        leads = False  # type: ignore[assignment]  # a property

        def share(self, value: object) -> object:
            assert value is None
            return shared.pop(0)

    budget = Budget(max_latency_ms=3.0)
    leader, follower = FakeClock(), FakeClock()
    theirs = search(leader, budget, ranks=Leader())
    assert search(follower, budget, ranks=Follower()) == theirs
    assert leader.timed
    assert not follower.timed
