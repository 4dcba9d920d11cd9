"""Healing within a memory limit, over a shortlist of tokens, and on a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation
from exporter.errors import InputError
from exporter.rewrite.replacements import compute_replacements
from exporter.search import shortlist as shortlists
from exporter.search.find import search_surgery
from exporter.search.gates import score_units, trained
from exporter.search.healing import Healer, draw_likelihood, kl_from_dense, respond
from exporter.search.lessons import ask_dense
from exporter.search.memory import LearningPlan, plan_learning
from exporter.search.ranks import Ranks
from exporter.search.rules import Budget
from exporter.search.state import copy_state, find_whole, start_state
from exporter.tasks.dataset import Dataset

PROMPTS = make_prompts(12, 5, seed=1)


@pytest.mark.parametrize("family", VARIANTS)
def test_activations_that_are_computed_again_give_the_same_scores(family: str) -> None:
    model = make_model(family)
    layers = {sublayer.layer for sublayer in model.dense.sublayers()}
    means = compute_replacements(model.dense, PROMPTS, ablation=Ablation(), neurons=layers)
    drawn = draw_likelihood(ask_dense(model.dense, PROMPTS), "both", torch.Generator().manual_seed(0))
    kept, again = (
        score_units(model.dense, [PROMPTS], [drawn], means, recompute=recompute) for recompute in (False, True)
    )
    assert kept.keys() == again.keys()
    assert all(torch.allclose(kept[name], again[name], rtol=1e-5) for name in kept)


def test_small_chunks_have_the_gradients_of_a_batch() -> None:
    model = make_model(n_layers=2, n_heads=2)
    lessons = ask_dense(model.dense, PROMPTS)
    start = start_state(model.dense, Ablation(), PROMPTS.length)
    found = []
    for plan in (LearningPlan(12), LearningPlan(5, recompute=True)):
        network = copy_state(start).model  # it shares embeddings and norms
        unembed = partial(torch.nn.functional.linear, weight=network.W_U)
        with trained(network) as parameters:
            for parameter in parameters:
                parameter.data.mul_(0.9)
            Healer(lessons, None, plan=plan)._take_step(network, lessons, parameters, unembed)
            found.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
    assert found[0] and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_memory_limit_makes_chunks_smaller_then_recomputes_then_refuses() -> None:
    dense = make_model(n_layers=4, n_heads=4).dense
    spare = 64 * 2**20
    wide = plan_learning(dense, 32, 100, 2**30)
    assert wide == LearningPlan(32)
    limits = [spare + 2**k for k in range(26, 10, -1)]
    plans = []
    with pytest.raises(InputError, match=r"the search needs .* MiB beside the model, .*raise --memory-limit"):
        for limit in limits:
            plans.append(plan_learning(dense, 32, 100, limit))
    chunks = [plan.chunk for plan in plans if not plan.recompute]
    assert chunks == sorted(chunks, reverse=True) and chunks[-1] < 32
    assert plans[-1].recompute and not plans[0].recompute


def test_a_memory_limit_is_kept_to_or_refused_by_the_search() -> None:
    model = make_model(n_layers=2, n_heads=2)
    rule = Budget(max_params="50%")
    surgery, _ = search_surgery(model, PROMPTS, PROMPTS, rule=rule, heal="none", memory_limit=2**30)
    assert surgery.circuit != find_whole(model.dense, Ablation())
    with pytest.raises(InputError, match="raise --memory-limit"):
        search_surgery(model, PROMPTS, PROMPTS, rule=rule, heal="none", memory_limit=2**20)


def test_a_shortlist_that_holds_all_tokens_has_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that holds few has a smaller one: KL over coarser events."""
    model = make_model(n_layers=2, n_heads=2)
    lessons = ask_dense(model.dense, PROMPTS)
    normed = lessons.normed + 0.3 * torch.randn(lessons.normed.shape, generator=torch.Generator().manual_seed(0))
    whole = kl_from_dense(lessons, normed @ model.dense.W_U.T)
    found = []
    for likely in (0.0, 0.05):
        monkeypatch.setattr(shortlists, "LIKELY", likely)
        short, shortlist = lessons.shorten()
        n_listed = len(shortlist.tokens)
        assert n_listed + len(shortlist.others) == len(model.dense.W_U)
        if likely:
            assert 0 < n_listed < len(model.dense.W_U)
        logits = shortlist.logits(normed, torch.Generator())
        found.append(float(kl_from_dense(short, logits)))
    assert found[0] == pytest.approx(float(whole), rel=1e-3)
    assert 0 < found[1] < found[0]


def test_other_tokens_are_estimated_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlists, "LIKELY", 0.05)
    lessons = ask_dense(make_model(n_layers=2, n_heads=2).dense, PROMPTS)
    _, shortlist = lessons.shorten()
    generator = torch.Generator().manual_seed(0)
    masses = torch.stack([shortlist.logits(lessons.normed, generator, sampled=4)[..., -1].exp() for _ in range(3000)])
    exact = lessons.logits[..., shortlist.others].exp().sum(-1)
    assert torch.allclose(masses.mean(0), exact, rtol=0.1)


def test_networks_are_compared_by_the_same_tokens_on_the_prompts_kept_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed or not: two looks at one network agree, and with all tokens listed a look is the mean KL."""
    model = make_model(n_layers=2, n_heads=2, seed=1)
    asked = ask_dense(make_model(n_layers=2, n_heads=2).dense, PROMPTS)
    aside = asked.take(torch.arange(5))
    logits = respond(model.dense, aside.prompts) @ asked.W_U.T
    mean = float(kl_from_dense(aside, logits)) / int(aside.prompts.counted.sum())
    for likely in (0.0, 0.05):
        monkeypatch.setattr(shortlists, "LIKELY", likely)
        monkeypatch.setattr("exporter.search.healing.SAMPLED_TO_JUDGE", 37 if likely == 0.0 else 4)
        healer = Healer(asked.take(torch.arange(5, 12)), aside)
        first = healer.look(model.dense)
        assert first == healer.look(model.dense)
        assert (first == pytest.approx(mean, rel=1e-3)) is (likely == 0.0)


def test_answers_and_choices_are_listed_and_numbered_anew() -> None:
    answers = torch.tensor([[7], [3], [9]])
    choices = torch.tensor([[7, 3, -1], [3, 9, 7], [9, 3, -1]])
    prompts = Dataset(PROMPTS.input_ids[:3], answers, choice_ids=choices)
    listed = shortlists.make_shortlist(prompts, torch.zeros(12), torch.randn(12, 4))
    assert listed.tokens.tolist() == [3, 7, 9]
    assert listed.translate(prompts).answer_ids.tolist() == [[1], [0], [2]]
    assert listed.translate(prompts).choice_ids.tolist() == [[1, 0, -1], [0, 2, 1], [2, 0, -1]]  # type: ignore[union-attr]


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds() -> None:
    model = make_model(n_layers=2, n_heads=4)
    rule = Budget(max_params="40%")
    found = [
        search_surgery(model, PROMPTS, PROMPTS, rule=rule, ranks=Ranks(device=device))[0] for device in ("cpu", "cuda")
    ]
    assert found[0].circuit == found[1].circuit
    assert all(edit.device.type == "cpu" for edit in found[1].edits.values())
