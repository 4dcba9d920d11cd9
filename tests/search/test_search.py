"""The search: exactly the paper's greedy algorithm, whatever it leaves uncomputed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import find_circuit_hooked
from tiers import examples
from tiny import VARIANTS, ablations, make_model, make_prompts, models
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import MLP, Ablation, Circuit, Component, Decision, Head, SearchRecord
from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.metrics import divergence
from exporter.network.step import Step
from exporter.search.find import find_circuit, search_circuit
from exporter.search.objective import KLObjective
from exporter.search.residuals import Residual
from exporter.tasks.dataset import Dataset


def assert_same_search(found: tuple[Circuit, SearchRecord], expected: tuple[Circuit, SearchRecord]) -> None:
    """The same decisions in the same order; KLs to 1e-5, as the oracle works in another precision."""
    (circuit, record), (same, plain) = found, expected
    assert circuit == same
    assert [(s.component, s.removed) for s in record.trace] == [(s.component, s.removed) for s in plain.trace]
    for ours, theirs in zip(record.trace, plain.trace, strict=True):
        assert ours.kl_before == pytest.approx(theirs.kl_before, abs=1e-5)
        assert ours.kl_without == pytest.approx(theirs.kl_without, abs=1e-5)
    assert record.kl == pytest.approx(plain.kl, abs=1e-5)
    assert (record.alpha, record.order) == (plain.alpha, plain.order)


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(20))
@given(
    data=st.data(),
    length=st.integers(1, 6),
    alpha=st.sampled_from([0.003, 0.03, 0.3]),
    ablation=ablations(),
    mlps=st.booleans(),
)
def test_equals_the_plain_hooked_search(
    family: str, data: st.DataObject, length: int, alpha: float, ablation: Ablation, mlps: bool
) -> None:
    model = data.draw(models((family,)))
    patching, selection = make_prompts(9, length, seed=1), make_prompts(70, length, seed=2)
    check_search(model, patching, selection, alpha=alpha, ablation=ablation, mlps=mlps)


@settings(max_examples=examples(60))
@given(
    model=models(),
    length=st.integers(2, 7),
    steps=st.integers(1, 3),
    padded=st.booleans(),
    alpha=st.sampled_from([0.003, 0.03, 0.3]),
    mean=st.sampled_from(["position", "global"]),
    align=st.sampled_from(["left", "right"]),
)
def test_equals_it_on_prompts_of_several_lengths_and_answers_of_several_tokens(
    model: LanguageModel, length: int, steps: int, padded: bool, alpha: float, mean: str, align: str
) -> None:
    steps = min(steps, length - 1)
    patching = make_prompts(9, length, seed=1, padded=padded, steps=steps)
    selection = make_prompts(30, length, seed=2, padded=padded, steps=steps)
    check_search(model, patching, selection, alpha=alpha, ablation=Ablation(by=mean, align=align))


def check_search(model: LanguageModel, patching: Dataset, selection: Dataset, *, alpha: float, **options: Any) -> None:
    """The engine's search is the oracle's, unless rounding decides somewhere."""
    expected = find_circuit_hooked(model, patching, selection, alpha=alpha, **options)
    margins = [abs(step.kl_without - step.kl_before - alpha) for step in expected[1].trace]
    if min(margins, default=1.0) > 1e-5:
        assert_same_search(search_circuit(model, patching, selection, alpha=alpha, **options), expected)


@settings(max_examples=examples(30))
@given(
    model=models(),
    length=st.integers(2, 8),
    shared=st.integers(1, 8),
    ablation=st.sampled_from(["mean", "zero"]),
    spare=st.integers(0, 200_000),
)
def test_shared_openings_and_little_memory_change_nothing(
    model: LanguageModel, length: int, shared: int, ablation: str, spare: int
) -> None:
    """Prompts that open alike, few of them at once, and residuals recomputed between every few layers."""
    sets = [make_prompts(n, length, seed=n) for n in (9, 33)]
    for dataset in sets:
        dataset.input_ids[:, :shared] = torch.arange(min(shared, length))
    options = {"alpha": 0.03, "ablation": ablation}
    expected = find_circuit_hooked(model, *sets, **options)
    margins = [abs(step.kl_without - step.kl_before - 0.03) for step in expected[1].trace]
    least = 2**26 + 400_000  # the fixed part of the plan for prompts of these sizes
    if min(margins) > 1e-5:
        assert_same_search(search_circuit(model, *sets, **options, memory_limit=least + spare), expected)


def test_logits_far_from_the_dense_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the final norm's gain 300 times as large, logits change by hundreds, and their exponentials overflow.

    KL is tens of nats then, so it is compared by its size.
    """
    model = make_model(n_layers=2, n_heads=3, seed=3)
    model.hf.transformer.ln_f.weight *= 300
    sets = make_prompts(9, 5, seed=1), make_prompts(40, 5, seed=2)
    n_far: list[int] = []

    def log_sum_exp(W_U: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        n_far.append(len(normed))
        return wide_log_sum_exp(W_U, normed)

    wide_log_sum_exp = divergence._log_sum_exp
    monkeypatch.setattr(divergence, "_log_sum_exp", log_sum_exp)
    (_, found), (_, expected) = search_circuit(model, *sets, alpha=5.0), find_circuit_hooked(model, *sets, alpha=5.0)
    assert len(n_far) >= 3 and max(n_far) > 10
    assert [(s.component, s.removed) for s in found.trace] == [(s.component, s.removed) for s in expected.trace]
    assert max(step.kl_without for step in found.trace) > 50
    for ours, theirs in zip(found.trace, expected.trace, strict=True):
        assert ours.kl_without == pytest.approx(theirs.kl_without, rel=1e-5)


def test_groups_of_heads_broken_by_a_survivor_and_resumed_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four heads of the last layer are evaluated at once; the third of them stays, and the next group starts there."""
    model = make_model(n_layers=2, n_heads=10, seed=1)
    W_O = model.hf.transformer.h[1].attn.c_proj.weight  # (head * d_head, d_model)
    W_O *= 0.01
    W_O[8:12] *= 500
    sets = make_prompts(9, 4, seed=1), make_prompts(100, 4, seed=2)
    groups: list[int] = []

    def price(self: KLObjective, states: list[Residual], above: list[Step]) -> list[float]:
        groups.append(len(states))
        return search_price(self, states, above)

    search_price = KLObjective.price
    monkeypatch.setattr(KLObjective, "price", price)
    whole = search_circuit(model, *sets, alpha=0.02)
    kept = [step.component for step in whole[1].trace[:10] if not step.removed]
    assert kept == [Head(1, 2)]
    assert groups[:4] == [4, 4, 3, 1]  # h0 to h3, h3 to h6, h7 to h9, the MLP
    assert_same_search(whole, find_circuit_hooked(model, *sets, alpha=0.02))
    for cut in range(len(whole[1].trace) + 1):
        assert search_circuit(model, *sets, alpha=0.02, prior=whole[1].trace[:cut]) == whole


def test_too_little_memory_is_said() -> None:
    sets = make_prompts(9, 5, seed=1), make_prompts(33, 5, seed=2)
    with pytest.raises(InputError, match=r"the search needs \d+ MiB beside the model for 33 prompts, allowed are 1"):
        find_circuit(make_model(), *sets, alpha=0.1, memory_limit=2**20)


# A GPT-2 set by hand. d_model is 2 and everything is written along (1, -1), so that the residual is one
# number d: x = (d, -d). With epsilon 1, LayerNorm gives (s, -s), s(d) = d / sqrt(d^2 + 1). d_head is 1 and
# prompts have one token, so attention passes its value on. Token 0 starts at d = 1, token 1 at d = -1.
READS = {(0, 0): 2.0, (0, 1): 0.0, (1, 0): 0.3, (1, 1): 0.3}  # head (layer, index) adds reads * s ...
ALWAYS = {(0, 0): 0.0, (0, 1): 0.5, (1, 0): 0.0, (1, 1): 0.0}  # ... + always
B_O = (0.25, -0.25)  # each layer's, never ablated
MLP_READS = (0.0, 1.0)  # MLP adds reads * relu(s) + always
MLP_ALWAYS = (0.125, 0.0)
K = 2.0  # logits are K * (s, -s) of the final norm


def by_hand_s(d: float) -> float:
    return d / math.sqrt(d * d + 1)


@dataclass(frozen=True)
class ByHand:
    """The model above in plain arithmetic: what each component adds for a token, in the dense model or a circuit."""

    means: dict[Component, float]

    def run(self, token: int, removed: set[Component]) -> tuple[float, dict[Component, float]]:
        """The probability of token 0, and what each component added."""
        d, added = 1.0 - 2.0 * token, {}
        for layer in (0, 1):
            s = by_hand_s(d)
            for index in (0, 1):
                head = Head(layer, index)
                own = READS[layer, index] * s + ALWAYS[layer, index]
                added[head] = self.means[head] if head in removed else own
            d += added[Head(layer, 0)] + added[Head(layer, 1)] + B_O[layer]
            mlp = MLP(layer)
            own = MLP_READS[layer] * max(by_hand_s(d), 0.0) + MLP_ALWAYS[layer]
            added[mlp] = self.means[mlp] if mlp in removed else own
            d += added[mlp]
        return 1 / (1 + math.exp(-2 * K * by_hand_s(d))), added

    def kl(self, removed: set[Component]) -> float:
        """Mean over the two prompts of KL(dense || circuit)."""
        total = 0.0
        for token in (0, 1):
            p, q = self.run(token, set())[0], self.run(token, removed)[0]
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        return total / 2


ORDER: list[Component] = [Head(1, 0), Head(1, 1), MLP(1), Head(0, 0), Head(0, 1), MLP(0)]


def make_by_hand() -> LanguageModel:
    config = GPT2Config(
        vocab_size=2, n_positions=4, n_embd=2, n_layer=2, n_head=2, n_inner=1, activation_function="relu",
        layer_norm_epsilon=1.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval().requires_grad_(False)
    along = torch.tensor([1.0, -1.0])
    for parameter in hf.parameters():
        parameter.zero_()
    hf.transformer.wte.weight[:] = torch.stack([along, -along])
    hf.lm_head.weight[:] = K * torch.eye(2)
    for norm in [hf.transformer.ln_f, *(n for block in hf.transformer.h for n in (block.ln_1, block.ln_2))]:
        norm.weight.fill_(1.0)
    for layer, block in enumerate(hf.transformer.h):
        for index in (0, 1):
            # v of head `index` is column 4 + index of Q|K|V: s, and then the head's own numbers
            block.attn.c_attn.weight[:, 4 + index] = READS[layer, index] * along / 2
            block.attn.c_attn.bias[4 + index] = ALWAYS[layer, index]
            block.attn.c_proj.weight[index] = along
        block.attn.c_proj.bias[:] = B_O[layer] * along
        block.mlp.c_fc.weight[:, 0] = along / 2
        block.mlp.c_proj.weight[0] = MLP_READS[layer] * along
        block.mlp.c_proj.bias[:] = MLP_ALWAYS[layer] * along
    return LanguageModel(name="by hand", revision=None, sha256="0" * 64, family="gpt2", hf=hf, tokenizer=None)


def search_by_hand(alpha: float, ablation: str) -> tuple[set[Component], list[Decision]]:
    """The greedy search on plain numbers."""
    dense = ByHand(dict.fromkeys(ORDER, 0.0))
    runs = [dense.run(token, set())[1] for token in (0, 1)]
    mean = {c: sum(run[c] for run in runs) / 2 for c in ORDER}  # of the dense model, and never again
    model = ByHand(mean if ablation == "mean" else dict.fromkeys(ORDER, 0.0))
    removed: set[Component] = set()
    now, trace = 0.0, []
    for candidate in ORDER:
        without = model.kl(removed | {candidate})
        trace.append(Decision(candidate, now, without, without - now < alpha))
        if trace[-1].removed:
            removed, now = removed | {candidate}, without
    return removed, trace


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("alpha", [0.002, 0.02, 0.2])
def test_weights_set_by_hand(ablation: str, alpha: float) -> None:
    ids = torch.tensor([[0], [1]])
    prompts = Dataset(ids, ids[:, 0])
    found, record = search_circuit(make_by_hand(), prompts, prompts, alpha=alpha, ablation=ablation)
    removed, trace = search_by_hand(alpha, ablation)
    assert set(found.heads) == {c for c in ORDER if isinstance(c, Head)} - removed
    assert set(found.mlps) == {c.layer for c in ORDER if isinstance(c, MLP) and c not in removed}
    assert [step.component for step in record.trace] == ORDER
    for ours, theirs in zip(record.trace, trace, strict=True):
        assert ours.removed == theirs.removed
        assert ours.kl_before == pytest.approx(theirs.kl_before, abs=1e-6)
        assert ours.kl_without == pytest.approx(theirs.kl_without, abs=1e-6)


def test_the_circuit_set_by_hand_is_known() -> None:
    """Head a0.h0 carries the task; the constant components have exactly their mean and cost nothing."""
    ids = torch.tensor([[0], [1]])
    prompts = Dataset(ids, ids[:, 0])
    found, record = search_circuit(make_by_hand(), prompts, prompts, alpha=0.05)
    assert found.heads == (Head(0, 0),)
    costs = {str(step.component): step.kl_without - step.kl_before for step in record.trace}
    assert costs["a0.h1"] == pytest.approx(0, abs=1e-6)
    assert costs["m0"] == pytest.approx(0, abs=1e-6)


def test_the_threshold_is_per_step_so_the_total_may_exceed_it() -> None:
    ids = torch.tensor([[0], [1]])
    prompts = Dataset(ids, ids[:, 0])
    alpha = 0.00022  # a1.h0 costs .00004 and then a1.h1 .0002: each below, together above
    _, found = search_circuit(make_by_hand(), prompts, prompts, alpha=alpha)
    assert [step.removed for step in found.trace[:2]] == [True, True]
    assert all(step.kl_without - step.kl_before < alpha for step in found.trace if step.removed)
    assert found.kl > alpha


def test_alpha_and_mlps_and_ablation_change_the_circuit() -> None:
    model = make_model(n_layers=3, n_heads=3)
    sets = make_prompts(20, 5, seed=1), make_prompts(30, 5, seed=2)
    base = find_circuit(model, *sets, alpha=0.02)
    assert len(find_circuit(model, *sets, alpha=10).heads) < len(base.heads) < 9
    assert find_circuit(model, *sets, alpha=10, mlps=False).mlps == (0, 1, 2)
    record = search_circuit(model, *sets, alpha=0.02)[1]
    for ablation in (Ablation("zero"), Ablation(by="global")):
        assert search_circuit(model, *sets, alpha=0.02, ablation=ablation)[1].trace != record.trace


def test_every_decision_is_reported_in_the_papers_order() -> None:
    model, seen = make_model(n_layers=2, n_heads=2), []
    _, record = search_circuit(
        model,
        make_prompts(5, 4),
        make_prompts(5, 4, seed=3),
        alpha=0.02,
        on_decision=lambda *args: seen.append(args),
    )
    assert [str(decision.component) for decision, _, _ in seen] == ["a1.h0", "a1.h1", "m1", "a0.h0", "a0.h1", "m0"]
    assert [(done, total) for _, done, total in seen] == [(i, 6) for i in range(1, 7)]
    assert tuple(decision for decision, _, _ in seen) == record.trace
    assert record.order == "paper"


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_a_threshold_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="give a threshold above 0"):
        find_circuit(make_model(), make_prompts(2, 3), make_prompts(2, 3), alpha=alpha)


def test_means_by_position_need_one_length() -> None:
    sets = make_prompts(4, 5), make_prompts(4, 6)
    with pytest.raises(InputError, match="patching prompts have 5 tokens and selection prompts 6"):
        find_circuit(make_model(), *sets, alpha=0.1)
    assert search_circuit(make_model(), *sets, alpha=0.1, ablation=Ablation(by="global"))[1].alpha == 0.1
