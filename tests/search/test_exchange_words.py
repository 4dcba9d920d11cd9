"""Networks that learn from the dense model alone learn from prompts with other words, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import make_model, make_prompts

from exporter.loading.load import LanguageModel
from exporter.search import rounds, variations
from exporter.search.find import search_surgery
from exporter.search.lessons import ask_dense
from exporter.search.rules import Budget
from exporter.search.variations import exchange
from exporter.search.varied_lessons import exchange_words
from exporter.tasks.dataset import Dataset

N_PROMPTS, WORDS = 40, range(30, 37)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(n_layers=3, n_heads=4, d_mlp=32)


@pytest.fixture
def like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 37 tokens, a few are near to a token; a third of the prompts is not yet many."""
    monkeypatch.setattr(variations, "LIKE", 6)
    monkeypatch.setattr(variations, "FREQUENT", 0.34)


def make_phrases(*, padded: bool) -> Dataset:
    """`5 a 6 b a 7`: a and b are of `WORDS`, 5 and 7 everywhere, 6 is 8 in one half; padded, some lack the first."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(WORDS.start, WORDS.stop, (N_PROMPTS,), generator=draw) for _ in range(2))
    second = torch.where(second == first, WORDS.start + (second + 1 - WORDS.start) % len(WORDS), second)
    ids = torch.stack([torch.full_like(first, t) for t in (5, 0, 6, 0, 0, 7)], dim=1)
    ids[:, 1], ids[:, 3], ids[:, 4] = first, second, first
    ids[::2, 2] = 8
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[::3, 0] = False
    return Dataset(ids * mask, second.clone(), mask if padded else None)


@pytest.mark.usefixtures("like")
@pytest.mark.parametrize("padded", [False, True])
def test_rare_tokens_become_others_like_them_wherever_they_stand(model: LanguageModel, padded: bool) -> None:
    prompts, W_E = make_phrases(padded=padded), model.dense.W_E
    varied = exchange(prompts, W_E, torch.Generator().manual_seed(1))
    before, after = prompts.input_ids, varied.input_ids
    frame = torch.tensor([0, 2, 5])
    assert torch.equal(after[:, frame], before[:, frame])  # the wording, and padding
    assert torch.equal(after[:, 1], after[:, 4])
    cosines = torch.nn.functional.cosine_similarity(W_E[:, None], W_E[None], dim=-1)
    nearest = cosines.argsort(dim=1, descending=True)[:, :6]
    for column in (1, 3):
        assert all(new in nearest[old] for old, new in zip(before[:, column], after[:, column], strict=True))
    assert 0.5 < float((after[:, 1] != before[:, 1]).double().mean()) < 1.0  # one in six stays itself
    assert len(after[before[:, 1] == WORDS.start, 1].unique()) > 1  # drawn anew for each prompt
    assert varied.n_unlabelled == N_PROMPTS and (varied.mask is None) is not padded
    again = exchange(prompts, W_E, torch.Generator().manual_seed(1))
    assert torch.equal(again.input_ids, after)


def test_tokens_that_many_prompts_have_stay(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variations, "FREQUENT", 0.0)
    prompts = make_phrases(padded=False)
    draw = torch.Generator().manual_seed(1)
    assert torch.equal(exchange(prompts, model.dense.W_E, draw).input_ids, prompts.input_ids)


@pytest.mark.usefixtures("like")
def test_the_dense_model_answers_at_most_so_many(model: LanguageModel) -> None:
    lessons = ask_dense(model.dense, make_phrases(padded=True))
    joined = exchange_words(lessons, model.dense, 15, torch.Generator().manual_seed(2))
    assert len(joined) == N_PROMPTS + 15 and joined.prompts.n_unlabelled == 15
    torch.testing.assert_close(joined.logits, ask_dense(model.dense, joined.prompts).logits)
    torch.testing.assert_close(joined.take(torch.arange(N_PROMPTS)).logits, lessons.logits)


@pytest.mark.parametrize(
    ("options", "varied"),
    [({}, True), ({"teacher": "labels"}, False), ({"heal": "refit"}, False)],
    ids=["dense", "labels", "refit"],
)
def test_they_are_learnt_where_the_dense_model_alone_teaches(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], varied: bool
) -> None:
    monkeypatch.setattr(rounds, "LEAST_ROUND", 4)
    monkeypatch.setattr(rounds, "MOST_STEPS", 8)
    patching, selection = make_prompts(60, 6), make_prompts(20, 6, seed=2)
    rule = Budget(max_params="10%")
    _, record = search_surgery(model, patching, selection, rule=rule, ablation="mean", **options)
    learnt = record.learning
    assert learnt is not None and learnt.varied == (learnt.prompts if varied else 0)
    assert ("variations" in record.weights) is varied


def test_answers_of_several_tokens_teach_at_their_last_position(model: LanguageModel) -> None:
    prompts = make_prompts(20, 6)
    several = replace(prompts, answer_ids=prompts.answer_ids[:, None, :1].expand(20, 2, 1).clone(), choice_ids=None)
    joined = exchange_words(ask_dense(model.dense, several), model.dense, 20, torch.Generator())
    assert joined.prompts.counted.sum(1).tolist() == [2] * 20 + [1] * 20
