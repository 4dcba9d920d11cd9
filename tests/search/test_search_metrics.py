"""The greedy search by any metric: exactly the plain hooked search by that metric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import find_circuit_hooked
from tiers import examples
from tiny import VOCAB, make_model, make_prompts, models

from exporter.circuit import Ablation, SearchRecord
from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.metrics import METRICS, SEARCHED
from exporter.search.find import find_circuit, search_circuit, search_surgery
from exporter.search.rules import Budget
from exporter.tasks.dataset import Dataset

OTHERS = [name for name in SEARCHED if name != "kl"]
ALPHAS = {"nats": 0.02, "logits": 0.1, "probability": 0.013, "Brier score": 0.013, "share of prompts": 0.05}


def give_alternatives(prompts: Dataset, *, choices: bool) -> Dataset:
    """The same prompts with up to three right answers a position, some repeated, and six choices."""
    generator = torch.Generator().manual_seed(5)
    steps = prompts.steps  # (prompt, step, 1)
    others = torch.randint(-1, VOCAB, (*steps.shape[:2], 2), generator=generator)
    answers = torch.cat([steps, others.where(steps >= 0, -1)], dim=-1)
    wrong = torch.randint(VOCAB, (len(prompts), 5), generator=generator)
    choice_ids = torch.cat([answers[:, -1, :1], wrong], dim=-1) if choices else None
    return Dataset(prompts.input_ids, answers, mask=prompts.mask, choice_ids=choice_ids)


@pytest.mark.parametrize("metric", OTHERS)
@settings(max_examples=examples(6))
@given(
    model=models(),
    length=st.integers(2, 6),
    steps=st.integers(1, 2),
    padded=st.booleans(),
    choices=st.booleans(),
    by=st.sampled_from(["position", "global"]),
)
def test_equals_the_plain_hooked_search(
    metric: str, model: LanguageModel, length: int, steps: int, padded: bool, choices: bool, by: str
) -> None:
    steps = min(steps, length - 1)
    patching = make_prompts(9, length, seed=1, padded=padded, steps=steps)
    selection = give_alternatives(make_prompts(23, length, seed=2, padded=padded, steps=steps), choices=choices)
    options = {"alpha": ALPHAS[METRICS[metric].unit], "ablation": Ablation(by=by), "metric": metric}
    gaps: list[torch.Tensor] = []

    def note_gap(logits: torch.Tensor) -> None:
        gaps.append(logits.sort(dim=-1).values.diff(dim=-1)[selection.counted].min())

    expected, plain = find_circuit_hooked(model, patching, selection, **options, on_logits=note_gap)
    margins = [abs(step.kl_without - step.kl_before - options["alpha"]) for step in plain.trace]
    is_top = METRICS[metric].unit == "share of prompts"  # by which token is likeliest, or which choice
    if min(margins) < 1e-5 or (is_top and min(gaps) < 3e-6):
        return  # rounding decides somewhere
    circuit, record = search_circuit(model, patching, selection, **options)
    assert circuit == expected
    assert (record.metric, record.alpha) == (metric, plain.alpha)
    assert record.kl == pytest.approx(plain.kl, abs=1e-5)
    for ours, theirs in zip(record.trace, plain.trace, strict=True):
        assert (ours.component, ours.removed) == (theirs.component, theirs.removed)
        assert ours.kl_without == pytest.approx(theirs.kl_without, abs=1e-4)


def test_each_metric_finds_a_circuit_of_its_own_and_goes_on_from_anywhere() -> None:
    model = make_model(n_layers=2, n_heads=4, seed=1)
    sets = make_prompts(9, 4, seed=1), make_prompts(30, 4, seed=2)
    traces = set()
    for metric in SEARCHED:
        whole = search_circuit(model, *sets, alpha=0.021, metric=metric)
        traces.add(tuple(step.kl_without for step in whole[1].trace))
        for cut in (0, 3, 10):
            assert search_circuit(model, *sets, alpha=0.021, metric=metric, prior=whole[1].trace[:cut]) == whole
    assert len(traces) == len(SEARCHED)


def test_what_is_better_than_dense_is_removed_whatever_alpha() -> None:
    """Of logit difference, below 0 is a gain; the least threshold takes whatever does not lose."""
    model = make_model(n_layers=2, n_heads=4, seed=1)
    sets = make_prompts(9, 4, seed=1), make_prompts(30, 4, seed=2)
    _, record = search_circuit(model, *sets, alpha=1e-9, metric="logit_difference")
    changes = [step.kl_without - step.kl_before for step in record.trace]
    assert min(changes) < 0 < max(changes)
    assert all(step.removed == (change < 1e-9) for step, change in zip(record.trace, changes, strict=True))


def test_metrics_that_are_none_and_searches_without_are_refused() -> None:
    sets = make_prompts(4, 3), make_prompts(4, 3)
    with pytest.raises(InputError, match="metric is 'confidence'; choose from accuracy, agreement, kl"):
        find_circuit(make_model(), *sets, alpha=0.1, metric="confidence")
    with pytest.raises(InputError, match="a gradual search goes by the budget, and takes no metric"):
        search_surgery(make_model(), *sets, rule=Budget(max_kl=1.0), metric="js")


def test_a_record_says_the_metric_where_it_is_not_kl() -> None:
    record = SearchRecord(alpha=0.1, order="paper", kl=0.2, metric="js")
    assert SearchRecord.from_json(record.to_json()) == record
    assert record.search == "paper order, by js, alpha 0.1"
    assert "metric" not in SearchRecord(alpha=0.1, order="paper", kl=0.2).to_json()
    with pytest.raises(InputError, match="metric must be str"):
        SearchRecord.from_json({"metric": 3})
