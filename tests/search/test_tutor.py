"""Where right answers are learnt, a larger network that has learnt them teaches the smaller ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import make_model, make_prompts

from exporter.loading.load import LanguageModel
from exporter.search import rounds
from exporter.search.find import search_surgery
from exporter.search.healing import Healer, answer, kl_from_tutor
from exporter.search.lessons import ask_dense
from exporter.search.rules import Budget
from exporter.search.tutor import ask_tutor
from exporter.search.variations import drop_tokens, find_frame, join, vary
from exporter.tasks.dataset import Dataset

SELECTION = make_prompts(20, 6, seed=2)
OPENING, ENDING = (7, 3), (5, 9)


def make_sentences(n: int, *, seed: int = 0) -> Dataset:
    """Prompts of 5 to 9 tokens that begin and end alike, with two choices."""
    draw = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(n, 9, dtype=torch.long), torch.zeros(n, 9, dtype=torch.bool)
    for row in range(n):
        text = torch.randint(10, 37, (1 + row % 5,), generator=draw)
        prompt = torch.cat([torch.tensor(OPENING), text, torch.tensor(ENDING)])
        ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, True
    choices = torch.tensor([[1, 2]]).expand(n, 2).clone()
    return Dataset(ids, choices[torch.arange(n), torch.randint(2, (n,), generator=draw)], mask, choices)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(n_layers=3, n_heads=4, d_mlp=32)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LEAST_ROUND", 4)
    monkeypatch.setattr(rounds, "MOST_STEPS", 8)
    monkeypatch.setattr("exporter.search.lessons.LEAST_ASIDE", 4)


def test_variations_keep_what_all_prompts_share_and_have_no_answer() -> None:
    prompts = make_sentences(60)
    varied = vary(prompts, torch.Generator().manual_seed(0))
    assert varied is not None and varied.mask is not None and prompts.mask is not None
    assert varied.n_unlabelled == 60 and varied.choice_ids is not None and varied.length == prompts.length
    known = set(prompts.input_ids[prompts.mask].tolist())
    changed = 0
    for row, ids in enumerate(varied.input_ids):
        tokens = tuple(ids[varied.mask[row]].tolist())
        assert tokens[:2] == OPENING and tokens[-2:] == ENDING and len(tokens) >= 5 and set(tokens) <= known
        changed += tokens != tuple(prompts.input_ids[row][prompts.mask[row]].tolist())
    assert changed > 20
    again = vary(prompts, torch.Generator().manual_seed(0))
    assert again is not None and torch.equal(again.input_ids, varied.input_ids)


def test_dropped_tokens_leave_the_frame_the_order_and_the_answers() -> None:
    prompts = make_sentences(60)
    frame = find_frame(prompts)
    assert frame == (2, 2)
    thinned = drop_tokens(prompts, frame, torch.Generator().manual_seed(0), 0.4)
    assert thinned.mask is not None and prompts.mask is not None
    assert torch.equal(thinned.answer_ids, prompts.answer_ids) and thinned.length == prompts.length
    for row in range(60):
        before, after = (s.input_ids[row][s.mask[row]].tolist() for s in (prompts, thinned) if s.mask is not None)
        assert after[:2] == [*OPENING] and after[-2:] == [*ENDING] and len(after) > 4
        left = iter(before)
        assert all(token in left for token in after)  # in their order
        assert thinned.mask[row, -len(after) :].all()  # padding stays on the left
    share = 1 - int(thinned.mask.sum() - 240) / int(prompts.mask.sum() - 240)
    assert 0.2 < share < 0.45  # a text of one token loses nothing
    same = drop_tokens(prompts, frame, torch.Generator(), 0.0)
    assert torch.equal(same.input_ids * same.mask, prompts.input_ids * prompts.mask)


def test_prompts_of_one_length_and_answers_of_several_tokens_are_not_varied() -> None:
    generator = torch.Generator().manual_seed(0)
    assert vary(make_prompts(8, 6), generator) is None
    sentences = make_sentences(8)
    several = replace(sentences, answer_ids=sentences.answer_ids[:, None].expand(8, 2, 1).clone(), choice_ids=None)
    assert vary(several, generator) is None


def test_the_tutor_says_what_it_answers_to_each_prompt(model: LanguageModel) -> None:
    prompts, aside = make_sentences(20), make_sentences(6, seed=3)
    dense = model.dense
    generator = torch.Generator().manual_seed(1)
    lessons, kept = ask_tutor(dense, ask_dense(dense, prompts), ask_dense(dense, aside), generator)
    assert len(lessons) == 60 and lessons.prompts.n_unlabelled == 40 and kept is not None
    torch.testing.assert_close(lessons.logits, answer(dense, lessons.prompts))
    torch.testing.assert_close(kept.logits, answer(dense, aside))


def test_the_loss_is_the_divergence_among_the_choices(model: LanguageModel) -> None:
    prompts = make_sentences(6)
    choices = torch.cat([torch.full((6, 1), -1), torch.tensor([[1, 2]]).expand(6, 2)], dim=1)
    lessons = ask_dense(model.dense, replace(prompts, choice_ids=choices))
    logits = torch.randn(lessons.logits.shape, requires_grad=True)
    p, q = (of_all[:, 0, 1:3].log_softmax(-1) for of_all in (lessons.logits, logits))
    by_hand = sum(float((p[i, c].exp() * (p[i, c] - q[i, c])).detach()) for i in range(6) for c in range(2))
    loss = kl_from_tutor(lessons, logits)
    assert float(loss) == pytest.approx(by_hand, rel=1e-4)
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert logits.grad[..., 3:].eq(0).all() and logits.grad[..., 1].abs().min() > 0
    without = replace(lessons, prompts=replace(prompts, choice_ids=None))
    whole = torch.nn.functional.kl_div(logits.log_softmax(-1), lessons.log_p, log_target=True, reduction="sum")
    assert float(kl_from_tutor(without, logits)) == pytest.approx(float(whole), rel=1e-4)


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(("teacher", "voices"), [("dense", {"dense"}), ("both", {"both", "tutor"})])
def test_the_first_network_that_is_healed_teaches_the_others(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, teacher: str, voices: set[str]
) -> None:
    seen: list[tuple[str, int]] = []
    heal = Healer.heal

    def note(self: Healer, network: Any, **options: Any) -> int:
        seen.append((self.teacher, network.count_parameters()))
        return heal(self, network, **options)

    monkeypatch.setattr(Healer, "heal", note)
    patching = make_sentences(60)
    selection = make_sentences(20, seed=5)
    _, record = search_surgery(
        model, patching, selection, rule=Budget(max_params="10%"), ablation="mean", teacher=teacher
    )
    assert {voice for voice, _ in seen} == voices
    assert [voice for voice, _ in seen] == sorted((voice for voice, _ in seen))  # "both" comes before "tutor"
    if teacher == "both":
        taught = [size for voice, size in seen if voice == "tutor"]
        assert seen[0][1] == record.path[0].parameters > max(taught)


def test_two_sets_are_joined() -> None:
    first, second = make_prompts(3, 6), make_prompts(2, 6, seed=1, unlabelled=True)
    both = join(first, second)
    assert torch.equal(both.input_ids, torch.cat([first.input_ids, second.input_ids]))
    assert both.is_labelled.tolist() == [True] * 3 + second.is_labelled.tolist() and both.choice_ids is None
