"""The gradual search: what it scores, what it chooses, what healing changes, and that its network is its surgery."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from exports import assert_same_logits
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, ablations, make_model, make_prompts, models

from exporter.circuit import Ablation, Circuit, Learning, SearchRecord, SizeStep
from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery, operate, slice_model
from exporter.search.allotment import Offer, choose_units
from exporter.search.cost import count_costs
from exporter.search.find import SEARCHES, search_surgery
from exporter.search.gates import finest_sites, run_gated, score_units
from exporter.search.healing import Healer, answer, draw_likelihood, kl_from_dense, label_loss
from exporter.search.judging import judge
from exporter.search.lessons import Lessons, ask_dense
from exporter.search.ranks import Ranks
from exporter.search.rules import Bounds, Budget, read_accuracy, read_parameters
from exporter.search.state import State, copy_state, cut_state, make_surgery, pick_tables, start_state
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import hooked_logits


def draw_circuit(data: st.DataObject, state: State) -> Circuit:
    """Some of the units that a network has left."""
    heads, neurons = [], {}
    for sublayer in state.model.sublayers():
        site = sublayer.sites[-1]
        units = [unit for unit in site.units if data.draw(st.booleans())]
        if site.kind == "heads":
            heads += [(site.layer, unit) for unit in units]
        elif units:
            neurons[site.layer] = tuple(units)
    return Circuit(tuple(heads), (), state.circuit.ablation, tuple(neurons.items()))


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(20))
@given(data=st.data(), padded=st.booleans(), steps=st.integers(1, 2), unlabelled=st.booleans(), ablation=ablations())
def test_the_network_is_its_surgery(
    family: str, data: st.DataObject, padded: bool, steps: int, unlabelled: bool, ablation: Ablation
) -> None:
    """Cut twice and trained, it gives the logits of the Hugging Face model with hooks and edits, and rewritten."""
    model = data.draw(models((family,)))
    prompts = make_prompts(12, 5, seed=1, padded=padded, steps=steps, unlabelled=unlabelled)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    layers = {sublayer.layer for sublayer in model.dense.sublayers()}
    dense_tables = compute_replacements(model.dense, prompts, ablation=ablation, neurons=layers)
    state = start_state(model.dense, ablation, prompts.length)
    lessons = ask_dense(model.dense, prompts)
    for seed in range(2):
        means = compute_replacements(state.model, prompts, ablation=ablation, neurons=layers)
        state = cut_state(state, draw_circuit(data, state), means)
        Healer(lessons, None).heal(state.model, steps=2, seed=seed)
    surgery = make_surgery(model.dense, state, dense_tables)
    ids, mask = prompts.input_ids, prompts.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    ours = state.model(ids, mask)[real]
    assert_same_logits(operate(model.dense, surgery)(ids, mask)[real], ours)
    assert_same_logits(hooked_logits(model, surgery, ids, mask)[real], ours)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())


@pytest.mark.parametrize("by", ["position", "global"])
def test_means_of_a_cut_network_are_those_of_what_it_computes(by: str) -> None:
    """With the constants that took the place of removed units, also of steps of which nothing is left."""
    dense, prompts, ablation = make_model(n_layers=3).dense, make_prompts(16, 5, seed=1), Ablation("mean", by)
    tables = compute_replacements(dense, prompts, ablation=ablation, neurons=range(3))
    kept = Circuit([(0, 0), (2, 1)], [], ablation, neurons={0: (0, 1), 2: (3, 4)})
    for model in (
        cut_state(start_state(dense, ablation, prompts.length), kept, tables).model,
        slice_model(dense, Surgery(kept, tables)),
    ):
        found = compute_replacements(model, prompts, ablation=ablation, neurons=range(3)).tables
        at = model.place(prompts.input_ids)
        x = model.embed(prompts.input_ids, at)
        for step in model.steps:
            for site in (sublayer.sites[-1] for sublayer in step.sublayers):
                mean = site.read(x, at).double().mean(0 if by == "position" else (0, 1))
                torch.testing.assert_close(found[site.name].view_as(mean), mean, rtol=1e-5, atol=1e-6)
            x = step(x, at)


@settings(max_examples=examples(20))
@given(model=models(), padded=st.booleans())
def test_scores_are_squared_slopes_of_gates(model: LanguageModel, padded: bool) -> None:
    """Against differences of the log-likelihood, a gate and a prompt at a time; a kink of ReLU has none."""
    assume(all(getattr(sublayer, "activation", None) != "relu" for sublayer in model.dense.sublayers()))
    dense, prompts = model.dense, make_prompts(3, 5, seed=1, padded=padded)
    layers = {sublayer.layer for sublayer in dense.sublayers()}
    means = compute_replacements(dense, prompts, ablation=Ablation(), neurons=layers)
    tokens = ask_dense(dense, prompts).draw_tokens(torch.Generator().manual_seed(0))
    lessons = ask_dense(dense, prompts)
    likelihood = draw_likelihood(lessons, "dense", torch.Generator().manual_seed(0))
    found = score_units(dense, [prompts], [likelihood], means)
    double = dense.replace(steps=[step.load() for step in dense.steps])
    gates = {name: torch.ones(len(prompts), n) for name, n in finest_sites(dense)}

    def likelihood() -> torch.Tensor:
        log_p = run_gated(double, prompts, means, gates).double().log_softmax(-1)
        return log_p.gather(-1, tokens[..., None]).sum((1, 2))

    name, n = next(finest_sites(dense))
    for unit in range(n):
        slopes = []
        for step in (1e-2, -1e-2):
            gates[name][:, unit] = 1 + step
            slopes.append(likelihood())
        gates[name][:, unit] = 1
        slope = (slopes[0] - slopes[1]) / 2e-2
        assert float(slope.square().sum()) == pytest.approx(float(found[name][unit]), rel=0.05, abs=1e-4)


def test_a_gate_of_zero_is_the_removed_unit() -> None:
    model, prompts = make_model(n_layers=2, n_heads=2), make_prompts(6, 5, seed=1)
    layers = {0, 1}
    means = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons=layers)
    gates = {name: torch.ones(len(prompts), n) for name, n in finest_sites(model.dense)}
    gates["heads.1"][:, 0] = 0
    gates["neurons.0"][:, 3:] = 0
    kept = Circuit([(0, 0), (0, 1), (1, 1)], [1], neurons={0: (0, 1, 2)})
    cut = operate(model.dense, Surgery(kept, means))
    assert_same_logits(cut.answer_logits(prompts.input_ids), run_gated(model.dense, prompts, means, gates))


@settings(max_examples=examples(100))
@given(data=st.data())
def test_the_choice_is_the_best_for_its_cost(data: st.DataObject) -> None:
    """Against all choices: nothing of the same cost or less is worth as much as what Lagrange's price promises."""
    numbers = st.floats(0.01, 10)
    offers = {
        name: Offer(
            torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=3)), dtype=torch.float64),
            data.draw(numbers),
            data.draw(numbers),
        )
        for name in ("a", "b", "c")
    }
    budget = data.draw(st.floats(0, 60))
    chosen = choose_units(offers, budget)

    def weigh(choice: dict[str, torch.Tensor]) -> tuple[float, float]:
        cost = sum(o.cost * int(choice[n].sum()) + o.setup * bool(choice[n].any()) for n, o in offers.items())
        return cost, sum(float(o.worth[choice[n]].sum()) for n, o in offers.items())

    cost, worth = weigh(chosen)
    assert cost <= budget + 1e-9
    sizes = [len(offer.worth) for offer in offers.values()]
    best = 0.0
    for bits in product((False, True), repeat=sum(sizes)):
        parts = torch.tensor(bits).split(sizes)
        other = weigh(dict(zip(offers, parts, strict=True)))
        best = max(best, other[1]) if other[0] <= budget else best
    # at most one sublayer's worth is lost to the gap of the relaxation
    assert worth >= best - max(float(offer.worth.sum()) for offer in offers.values()) - 1e-9


def test_what_is_worth_most_for_its_cost_stays_and_slivers_go_as_a_whole() -> None:
    offers = {
        "whole": Offer(torch.tensor([5.0, 4.0, 0.1]), 1.0, 1.0),
        "sliver": Offer(torch.tensor([1.5, 0.0]), 1.0, 3.0),
    }
    chosen = choose_units(offers, 3.0)
    assert (chosen["whole"].tolist(), chosen["sliver"].tolist()) == ([True, True, False], [False, False])
    assert choose_units(offers, 100.0)["sliver"].tolist() == [True, False]
    assert not any(stays.any() for stays in choose_units(offers, 1.5).values())


def test_costs_of_units_add_up_to_the_sublayer() -> None:
    for family in VARIANTS:
        for sublayer in make_model(family.split("-")[0] if "-" in family else family).dense.sublayers():
            per_unit, beside = count_costs(sublayer)
            whole = sum(parameter.numel() for parameter in sublayer.parameters())
            assert per_unit * len(sublayer.sites[-1].units) + beside == pytest.approx(whole)


def test_healing_comes_nearer_to_the_teacher_and_is_the_same_again() -> None:
    model, prompts = make_model(n_layers=2, n_heads=4, seed=3), make_prompts(64, 5, seed=1)
    lessons = ask_dense(model.dense, prompts)
    means = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons={0, 1})
    start = start_state(model.dense, Ablation(), prompts.length)
    state = cut_state(start, Circuit([(0, 1), (1, 2)], [], neurons={0: range(8), 1: range(8)}), means)
    twin, aside = copy_state(state), lessons.take(torch.arange(16))
    before = kl_from_dense(lessons, answer(state.model, prompts))
    healer = Healer(lessons.take(torch.arange(16, 64)), aside)
    assert healer.heal(state.model, steps=60, seed=1) == healer.heal(twin.model, steps=60, seed=1) > 0
    after = kl_from_dense(lessons, answer(state.model, prompts))
    assert float(after) < 0.5 * float(before)
    for ours, theirs in zip(state.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_healing_that_makes_it_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.search.healing.LEARNING_RATE", 1e3)
    model, prompts = make_model(), make_prompts(32, 5, seed=1)
    lessons = ask_dense(model.dense, prompts)
    means = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons={0, 1})
    state = cut_state(start_state(model.dense, Ablation(), 5), Circuit([(0, 1)], [], neurons={0: (1, 2)}), means)
    before = [parameter.clone() for parameter in state.model.parameters()]
    Healer(lessons, lessons).heal(state.model, steps=8, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_losses_by_hand() -> None:
    prompts = Dataset(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), choice_ids=torch.tensor([[3, 4, 5, -1]]))
    model = make_model()
    lessons = ask_dense(model.dense, prompts)
    logits = torch.full((1, 1, 37), -5.0)
    logits[0, 0, [3, 4, 5]] = torch.tensor([1.0, 2.0, 3.0])
    right, total = torch.tensor([1.0, 2.0]).exp().sum(), torch.tensor([1.0, 2.0, 3.0]).exp().sum()
    assert float(label_loss(lessons, logits)) == pytest.approx(float((total / right).log()))
    free = ask_dense(model.dense, Dataset(prompts.input_ids, prompts.answer_ids))
    everything = logits.exp().sum()
    assert float(label_loss(free, logits)) == pytest.approx(float((everything / right).log()))
    assert float(kl_from_dense(lessons, model.dense.answer_logits(prompts.input_ids))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("heal", ["none", "distil"])
def test_a_budget_of_parameters_is_kept(heal: str) -> None:
    model, sets = (
        make_model(n_layers=3, n_heads=4, d_mlp=32),
        (make_prompts(40, 6, seed=1), make_prompts(20, 6, seed=2)),
    )
    steps: list[SizeStep] = []
    surgery, record = search_surgery(
        model, *sets, rule=Budget(max_params="20%"), heal=heal, on_size=lambda step, _share: steps.append(step)
    )
    size = model.dense.count_parameters()
    small = steps[-1].parameters
    assert small <= 0.2 * size
    assert record.path == tuple(steps)
    assert SearchRecord.from_json(record.to_json()) == record
    assert (record.order, record.budget) == ("gradual", {"max_params": "20%"})
    assert (record.learning is None) == (heal == "none") == (not surgery.edits)
    again = search_surgery(model, *sets, rule=Budget(max_params="20%"), heal=heal)
    assert again[0].sha256 == surgery.sha256


def test_mlps_stay_whole_where_they_are_no_candidates() -> None:
    model, sets = make_model(n_layers=3, n_heads=4), (make_prompts(40, 6, seed=1), make_prompts(20, 6, seed=2))
    surgery, _ = search_surgery(model, *sets, rule=Budget(max_params="70%"), heal="none", mlps=False)
    assert surgery.circuit.mlps == (0, 1, 2)
    assert not surgery.circuit.neurons
    assert len(surgery.circuit.heads) < 12


def test_a_budget_that_nothing_keeps_is_refused_with_the_nearest() -> None:
    model, sets = make_model(n_layers=2), (make_prompts(20, 6, seed=1), make_prompts(20, 6, seed=2))
    with pytest.raises(InputError, match=r"no smaller circuit was found that keeps max_kl 1e-12; the nearest has"):
        search_surgery(model, *sets, rule=Budget(max_kl=1e-12), heal="none")


def test_a_healed_search_is_given_up_only_once_a_large_network_has_failed() -> None:
    model, sets = make_model(n_layers=2, d_mlp=32), (make_prompts(40, 6, seed=1), make_prompts(20, 6, seed=2))
    sizes: list[float] = []
    with pytest.raises(InputError, match="no smaller circuit"):
        search_surgery(model, *sets, rule=Budget(max_kl=1e-12), on_size=lambda _step, share: sizes.append(share))
    assert max(sizes) > 0.5 and min(sizes) < 0.3


def test_tables_are_picked_by_unit() -> None:
    model, prompts = make_model(n_layers=2, n_heads=4), make_prompts(6, 5, seed=1)
    tables = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons={0, 1})
    start = start_state(model.dense, Ablation(), 5)
    cut = cut_state(start, Circuit([(0, 1), (0, 3)], [], neurons={1: (2, 5)}), tables)
    picked = pick_tables(tables, cut.model).tables
    assert torch.equal(picked["heads.0"], tables.tables["heads.0"][:, [1, 3]])
    assert torch.equal(picked["neurons.1"], tables.tables["neurons.1"][:, [2, 5]])


@pytest.mark.parametrize(
    ("text", "dense", "value"), [("99%", 0.8, 0.792), ("-1pt", 0.8, 0.79), ("0.95", 0.8, 0.95), (".5", 1.0, 0.5)]
)
def test_bounds_on_accuracy(text: str, dense: float, value: float) -> None:
    assert read_accuracy(text, dense) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "99", "1.5", "-0.1", "nan", "120%", "-200pt", "99 %", "9e-1", "0"])
def test_no_bounds_on_accuracy(text: str) -> None:
    with pytest.raises(InputError, match="min_accuracy is"):
        Budget(min_accuracy=text)


def test_bounds_on_parameters() -> None:
    assert read_parameters("3%", 1000) == 30
    assert read_parameters("250", 1000) == 250
    for text in ("0%", "101%", "-3", "3.5", "1e3", "0", ""):
        with pytest.raises(InputError, match="max_params is"):
            read_parameters(text, 1000)


@pytest.mark.parametrize(
    "bounds", [{"max_kl": 0}, {"max_kl": float("nan")}, {"max_latency_ms": -1}, {"batch": 0}, {"threads": 0}]
)
def test_no_bounds(bounds: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Budget(**bounds)


def test_a_budget_in_numbers() -> None:
    budget = Budget(min_accuracy="-1pt", max_kl=0.5, max_params="10%", max_latency_ms=2.0, batch=8)
    bounds = budget.resolve(accuracy=0.9, parameters=1000)
    assert bounds == Bounds(pytest.approx(0.89), 0.5, 100, 2.0)
    assert bounds.keeps_quality(0.89, 0.5)
    assert not bounds.keeps_quality(0.88, 0.1)
    assert not bounds.keeps_quality(0.9, 0.51)
    assert bounds.keeps_cost(100, 2.0)
    assert not bounds.keeps_cost(101, 1.0)
    assert not bounds.keeps_cost(10, 2.1)
    assert "batch" not in Budget(max_kl=1.0).to_json()
    assert budget.to_json()["batch"] == 8


def test_a_record_in_words() -> None:
    assert SearchRecord().search == "given by hand"
    assert SearchRecord(alpha=0.02, order="paper").search == "paper order, alpha 0.02"
    record = SearchRecord(
        order="gradual", budget={"min_accuracy": "-1pt"}, learning=Learning("distil", "dense", 900, 1406)
    )
    assert record.search == "gradual search under the budget min_accuracy -1pt"
    assert record.weights == "healed, not the original's: distil from dense on 900 prompts, 1,406 steps"
    assert set(SEARCHES) == {"gradual", "paper"}


def test_ranks_sum_tensors_alone() -> None:
    tensors = [torch.ones(2), torch.zeros(3)]
    Ranks().add_up(tensors)
    assert torch.equal(tensors[0], torch.ones(2))


@settings(max_examples=examples(40))
@given(model=models(), padded=st.booleans(), steps=st.integers(1, 2), scale=st.sampled_from([1.0, 30.0]))
def test_what_is_judged_is_right_to_a_millionth(model: LanguageModel, padded: bool, steps: int, scale: float) -> None:
    """KL against plain float64, never negative, and accuracy by counting; the dense model's own KL is 0."""
    prompts = make_prompts(40, 5, seed=1, padded=padded, steps=steps)
    lessons = ask_dense(model.dense, prompts)
    lessons = Lessons(prompts, scale * lessons.normed, lessons.W_U)
    other = lessons.logits + 0.1 * torch.randn(lessons.logits.shape, generator=torch.Generator().manual_seed(0))
    rows = iter(other.split(32))
    found = judge(lessons, lambda _part: next(rows))
    p, q = (logits.double().log_softmax(-1) for logits in (lessons.logits, other))
    expected = float(((p.exp() * (p - q)).sum(-1) * prompts.counted).sum() / prompts.counted.sum())
    assert found.kl == pytest.approx(expected, abs=1e-6)
    assert found.kl >= 0
    assert found.accuracy == float(prompts.is_answer(prompts.predict(other)).double().mean())
    assert judge(lessons, lambda part: part.logits).kl == 0
