"""What a gradual search costs: by hand, against torch's own counter, and against tensors that are really kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model, make_prompts
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exporter.circuit import Ablation, SizeStep
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.search import gradual, rounds
from exporter.search.find import search_surgery
from exporter.search.gates import list_trained, run_gated, score_units, trained
from exporter.search.gradual_cost import (
    Work,
    count_gradual_bytes,
    count_gradual_flops,
    count_healing_bytes,
    count_judging_flops,
    count_means_flops,
    count_scores_bytes,
    count_scores_flops,
    count_step_flops,
    find_largest_healed,
)
from exporter.search.gradual_path import count_units, follow_path, predict_path, spread_units
from exporter.search.healing import BATCH, Healer, draw_likelihood
from exporter.search.judging import judge_network
from exporter.search.lessons import ask_dense
from exporter.search.memory import LearningPlan, count_kept
from exporter.search.rules import Budget
from exporter.search.walk import FIRST, RATIO

N, T = 10, 5
VOCAB = 37
WORK = Work(patching=N, selection=N, length=T, entries=20, plan=LearningPlan(N))
AGAIN = replace(WORK, plan=LearningPlan(N, recompute=True))
PROMPTS = make_prompts(N, T)
FAMILIES: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": {"num_key_value_heads": 2}, "gpt_neox": {}}


def make_dense(family: str = "gpt2", **shape: int) -> CircuitModel:
    shape = {"n_layers": 3, "n_heads": 4, "d_head": 4} | shape
    dense: CircuitModel = make_model(family, **shape, **FAMILIES[family]).dense
    return dense


def take_means(model: CircuitModel) -> Replacements:
    layers = {sublayer.layer for sublayer in model.sublayers()}
    return compute_replacements(model, PROMPTS, ablation=Ablation(), neurons=layers)


def count(run: Any) -> int:
    """FLOPs by torch's counter; with the plain attention, which it knows on a CPU."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


def test_flops_by_hand() -> None:
    """One layer, d = 8, two heads of 4, m = 32: the answer position alone, but keys and values of all."""
    dense = make_dense(n_layers=1, n_heads=2)
    q, kv, pattern, out, mlp_in, mlp_out, unembedding = (
        2 * N * k for k in (8 * 8, 2 * T * 8 * 8, 2 * T * 8, 8 * 8, 8 * 32, 32 * 8, VOCAB * 8)
    )
    once = q + kv + pattern + out + mlp_in + mlp_out
    # nothing is learnt before the first gate, which stands between the pattern and W_O
    assert count_scores_flops(dense, N, WORK) == once + out + mlp_in + mlp_out + 2 * unembedding
    assert count_scores_flops(dense, N, AGAIN) == 2 * once + mlp_in + 2 * unembedding  # each step but its last product
    # a shortlist of 20, and the 17 other tokens, which are fewer than a sample would be
    assert count_step_flops(dense, WORK) == 3 * once - q - kv + 2 * unembedding
    assert count_judging_flops(dense, N, WORK) == once + 2 * unembedding
    assert count_means_flops(dense, N, WORK) == T * (q + pattern + out + mlp_in + mlp_out) + kv


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_cost_what_torch_counts(family: str, recompute: bool) -> None:
    dense = make_dense(family)
    means, likelihood = take_means(dense), draw_likelihood(ask_dense(dense, PROMPTS), "dense", torch.Generator())
    counted = count(lambda: score_units(dense, [PROMPTS], [likelihood], means, recompute=recompute))
    assert count_scores_flops(dense, N, AGAIN if recompute else WORK) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_costs_what_torch_counts(family: str, recompute: bool) -> None:
    dense = make_dense(family)
    network, lessons = spread_units(dense, 5, 20, length=T), ask_dense(dense, PROMPTS)
    work = AGAIN if recompute else WORK
    unembed = partial(torch.nn.functional.linear, weight=dense.W_U)
    with trained(network) as parameters:
        take_step = Healer(lessons, None, plan=work.plan)._take_step
        of_teacher = count(lambda: lessons.log_p)  # which a shortlist has
        counted = count(lambda: take_step(network, lessons, parameters, unembed)) - of_teacher
    assert count_step_flops(network, work) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_means_and_judgements_cost_what_torch_counts(family: str) -> None:
    dense = make_dense(family)
    counted = count(lambda: take_means(dense))
    assert count_means_flops(dense, N, WORK) == pytest.approx(counted, rel=0.02)
    lessons = ask_dense(dense, PROMPTS)
    counted = count(lambda: judge_network(dense, lessons))
    assert count_judging_flops(dense, N, WORK) == pytest.approx(counted, rel=0.02)


def test_a_whole_search_costs_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers at every position, so that it does not matter in which layers units stay."""
    monkeypatch.setattr(rounds, "LEAST_ROUND", 8)
    monkeypatch.setattr(rounds, "MOST_ROUND", 8)
    monkeypatch.setattr(rounds, "MOST_STEPS", 16)
    dense, prompts = make_dense(), make_prompts(80, 3, steps=3)
    found = []
    rule = Budget(max_params="15%")
    counted = count(lambda: found.append(search_surgery(dense, prompts, prompts, rule=rule)))
    _, record = found[0]
    assert len(record.path) > 1 and any(size.steps for size in record.path)
    entries = len(ask_dense(dense, prompts).shorten()[1].tokens)
    flops = count_gradual_flops(dense, follow_path(dense, record.path, 3), Work(80, 80, 3, 3, entries))
    assert sum(flops.values()) == pytest.approx(counted, rel=0.1)
    assert all(flops.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_that_are_kept_are_fewer_than_reckoned_with_but_not_by_far(family: str) -> None:
    dense = make_dense(family, d_head=8, n_heads=8)
    means = take_means(dense)
    gates = {
        site.name: torch.ones(N, len(site.units), requires_grad=True)
        for site in (sublayer.sites[-1] for sublayer in dense.sublayers())
    }
    own = {parameter.untyped_storage().data_ptr() for parameter in dense.parameters()}
    kept: dict[int, Tensor] = {}  # tensors, so that no memory is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_gated(dense, PROMPTS, means, gates).log_softmax(-1)
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    reckoned = 4 * N * count_kept(dense, T, VOCAB, recompute=False)
    assert reckoned / 6 < n_bytes < reckoned


def test_units_are_spread_over_the_layers() -> None:
    dense = make_dense(n_layers=3)
    network = spread_units(dense, 2, 50, length=T)
    assert [count_units(network, kind) for kind in ("heads", "neurons")] == [2, 50]
    kinds = [sublayer.name for sublayer in network.sublayers()]
    assert kinds == ["m0", "a1", "m1", "a2", "m2"]
    outline = spread_units(dense.on_device("meta"), 2, 50, length=T)
    assert outline.count_parameters() == network.count_parameters()
    assert sum(p.numel() for p in list_trained(outline)) == sum(p.numel() for p in list_trained(network))


def test_a_path_is_followed_as_it_was_walked() -> None:
    """A size that is too large to heal, one that fails, one from the last good one, and that one once more."""
    dense = make_dense()
    whole = dense.count_parameters()

    def size(share: float, steps: int, *, kept: bool) -> SizeStep:
        return SizeStep(int(share * whole), 4, 12, 0.1, 0.5, 0.1, 0.5, steps, kept)

    first, most = rounds.count_steps(4)
    path = [
        size(0.3, 0, kept=False),
        size(0.24, first, kept=True),
        size(0.2, most, kept=False),
        size(0.24, most, kept=True),
        size(0.22, 0, kept=True),
    ]
    stops = follow_path(dense, path, T)
    assert [stop.is_first for stop in stops] == [True, False, False, False, False]
    assert [stop.rounds for stop in stops] == [0, 1, 2, 1, 0]
    assert [None if stop.base is None else stop.base for stop in stops[1:]] == [
        stops[0].model, stops[1].model, None, stops[1].model
    ]  # fmt: skip
    assert [stop.scored for stop in stops] == [gradual.SCORED_FIRST, gradual.SCORED, gradual.SCORED, 0, gradual.SCORED]


def test_a_predicted_path_is_that_of_a_walk_that_never_fails() -> None:
    dense = make_dense(n_layers=6, n_heads=8, d_head=8)
    path, longest = predict_path(dense), predict_path(dense, all_steps=True)
    sizes = [size.parameters for size in path]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == sizes[-2]
    assert path[0].steps == 0 < path[1].steps < longest[1].steps
    assert path[0].parameters / dense.count_parameters() == pytest.approx(FIRST - gradual.SETUP * 12, abs=0.03)
    assert path[1].parameters / dense.count_parameters() == pytest.approx(FIRST * RATIO - gradual.SETUP * 12, abs=0.03)
    assert [size.heads for size in path] == [size.heads for size in longest]


shares = st.floats(0.05, 0.6)
works = st.builds(
    Work, patching=st.integers(8, 500), selection=st.integers(1, 50), length=st.integers(2, 12),
    n_steps=st.integers(1, 2), entries=st.integers(1, 30), plan=st.builds(LearningPlan, st.integers(1, BATCH)),
)  # fmt: skip
DENSE = make_dense()


@settings(max_examples=5)
@given(works, shares)
def test_more_to_do_holds_more(work: Work, share: float) -> None:
    units = [count_units(DENSE, kind) for kind in ("heads", "neurons")]
    small, large = (
        spread_units(DENSE.on_device("meta"), *(max(1, int(s * n)) for n in units), length=work.length)
        for s in (share, share + 0.3)
    )
    assert count_healing_bytes(small, work) < count_healing_bytes(large, work)
    assert count_scores_bytes(small, work) < count_scores_bytes(large, work)
    path = predict_path(DENSE)

    def hold(work: Work) -> dict[str, int]:
        return count_gradual_bytes(DENSE, follow_path(DENSE, path, work.length), work)

    held = hold(work)
    assert held["dense"] < min(held["scores"], held["healing"])
    for name in ("patching", "selection", "length", "entries"):
        more = hold(replace(work, **{name: 2 * getattr(work, name)}))
        assert all(more[part] >= held[part] for part in held) and more != held
    ranks, stops = replace(work, n_ranks=8), follow_path(DENSE, path, work.length)
    assert hold(ranks)["healing"] <= held["healing"]
    flops, of_a_rank = (count_gradual_flops(DENSE, stops, w) for w in (work, ranks))
    assert all(of_a_rank[part] <= flops[part] for part in flops)
    assert of_a_rank["judging"] == flops["judging"]
    assert 8 * of_a_rank["scores"] >= flops["scores"] > of_a_rank["scores"]


def test_a_larger_memory_heals_larger_networks() -> None:
    whole = sum(p.numel() for p in DENSE.parameters()) * 4
    found = [find_largest_healed(DENSE, WORK, whole + 1024 * kibibytes) for kibibytes in (1, 200, 300, 100_000)]
    assert found == sorted(found)
    assert found[0] == 0.0 < found[1] < found[2] < found[3] == 1.0
