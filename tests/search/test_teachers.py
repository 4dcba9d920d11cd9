"""Searches that learn from prompts without a right answer: what they learn from them, and what they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import make_model, make_prompts

from exporter.circuit import Ablation, Learning, SearchRecord
from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery
from exporter.search import gradual, rounds
from exporter.search.find import search_circuit, search_surgery
from exporter.search.healing import (
    BESIDE_LABELS,
    LOOKED_AT,
    LOSSES,
    Voice,
    answer,
    draw_likelihood,
    kl_from_dense,
    label_loss,
    weigh,
)
from exporter.search.judging import MOST_OF_CONSTANT, Judgement, judge_constant
from exporter.search.lessons import ask_dense
from exporter.search.problem import Problem
from exporter.search.rules import Budget
from exporter.tasks.dataset import Dataset

SELECTION = make_prompts(20, 6, seed=2)
LABELLED = make_prompts(40, 6, seed=1)
HALF = make_prompts(40, 6, seed=1, unlabelled=True)
NONE = Dataset(LABELLED.input_ids, torch.full((40,), -1), labelled=torch.zeros(40, dtype=torch.bool))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(n_layers=3, n_heads=4, d_mlp=32)


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well it is healed is not asked here."""
    monkeypatch.setattr(rounds, "LEAST_ROUND", 4)
    monkeypatch.setattr(rounds, "MOST_STEPS", 8)
    monkeypatch.setattr("exporter.search.lessons.LEAST_ASIDE", 4)


def heal(model: LanguageModel, patching: Dataset, teacher: str) -> tuple[Surgery, SearchRecord]:
    return search_surgery(model, patching, SELECTION, rule=Budget(max_params="20%"), teacher=teacher)


def test_the_dense_model_as_teacher_needs_no_answers(model: LanguageModel) -> None:
    labelled, learnt = heal(model, LABELLED, "dense")
    half, of_half = heal(model, HALF, "dense")
    none, of_none = heal(model, NONE, "dense")
    assert labelled.edits and labelled.sha256 == half.sha256 == none.sha256
    assert [record.learning and record.learning.unlabelled for record in (learnt, of_half, of_none)] == [0, 17, 36]
    assert of_none.learning is not None and of_none.learning.prompts == 36  # the others say when to stop


def test_the_greedy_search_needs_none(model: LanguageModel) -> None:
    assert search_circuit(model, NONE, SELECTION, alpha=0.1) == search_circuit(model, LABELLED, SELECTION, alpha=0.1)


def test_labels_are_learnt_from_the_prompts_that_have_some(model: LanguageModel) -> None:
    surgery, record = heal(model, HALF, "labels")
    assert record.learning == Learning("distil", "labels", 20, record.learning.steps if record.learning else 0)
    both, of_both = heal(model, HALF, "both")
    assert of_both.learning is not None and (of_both.learning.prompts, of_both.learning.unlabelled) == (36, 17)
    assert len({surgery.sha256, both.sha256, heal(model, HALF, "dense")[0].sha256}) == 3


@pytest.mark.parametrize("teacher", ["labels", "both"])
def test_labels_of_no_prompt_are_refused(model: LanguageModel, teacher: str) -> None:
    with pytest.raises(InputError, match=f"--teacher {teacher} learns right answers, and none of the 40 patching"):
        heal(model, NONE, teacher)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("choosing", [False, True])
def test_each_loss_is_a_mean_over_what_it_is_about(model: LanguageModel, steps: int, choosing: bool) -> None:
    prompts = make_prompts(10, 6, seed=3, steps=steps, unlabelled=True)
    if choosing:
        answers = prompts.steps[:, -1]
        beside = torch.where(answers >= 0, (answers + 1) % 37, -1)
        prompts = replace(prompts, choice_ids=torch.cat([answers, beside], dim=1))
    lessons = ask_dense(model.dense, prompts)
    logits = torch.randn(10, steps, 37, generator=torch.Generator().manual_seed(0), requires_grad=True)
    known = prompts.is_labelled.nonzero()[:, 0]
    labels = label_loss(lessons.take(known), logits[known])
    assert labels.item() > 0
    torch.testing.assert_close(label_loss(lessons, logits), labels)
    kl = kl_from_dense(lessons, logits)
    assert kl.item() > kl_from_dense(lessons.take(known), logits[known]).item() > 0
    expected: dict[Voice, torch.Tensor] = {"dense": kl / (5 * steps + 5), "labels": labels / (5 * steps)}
    expected["both"] = BESIDE_LABELS * expected["dense"] + expected["labels"]
    for teacher, loss in expected.items():
        torch.testing.assert_close(weigh(LOSSES[teacher], lessons, logits, prompts), loss)
    (slope,) = torch.autograd.grad(expected["both"], logits)
    assert slope.isfinite().all() and (slope[:, -1] != 0).any(dim=-1).all()
    if steps == 2:
        assert (slope[0, 0] == 0).all()  # an unlabelled prompt has one answer position


def test_a_batch_without_a_label_teaches_what_the_dense_model_says(model: LanguageModel) -> None:
    lessons = ask_dense(model.dense, NONE)
    loss = weigh(LOSSES["both"], lessons, answer(model.dense, NONE) + torch.arange(37.0), NONE)
    assert loss.isfinite() and float(loss) > 0


def test_prompts_kept_aside_are_looked_at_by_the_error_of_the_right_answers(model: LanguageModel) -> None:
    """One answer that is wrong and sure weighs as much as four that are in doubt: its likelihood would outweigh all."""
    prompts = replace(
        LABELLED, choice_ids=torch.stack([LABELLED.steps[:, 0, 0], (LABELLED.steps[:, 0, 0] + 1) % 37], 1)
    )
    lessons, by_hand = ask_dense(model.dense, prompts), 0.0
    logits = torch.zeros(40, 1, 37)
    logits[torch.arange(40), 0, prompts.steps[:, 0, 0]] = torch.linspace(-30, 3, 40)
    for doubt in torch.linspace(-30, 3, 40).tolist():
        by_hand += (1 - 1 / (1 + math.exp(-doubt))) ** 2 / 40
    looked = weigh(LOOKED_AT["labels"], lessons, logits, prompts)
    assert float(looked) == pytest.approx(by_hand, rel=1e-4) and float(looked) < 1
    assert float(weigh(LOSSES["labels"], lessons, logits, prompts)) > 10


def test_a_model_that_always_answers_alike_has_an_answer_for_every_step(model: LanguageModel) -> None:
    """Of answers of two tokens, prompts without an answer have one position: what is said there stands for both."""
    ids, selection = LABELLED.input_ids, make_prompts(20, 6, seed=2, steps=2)
    none = Dataset(ids, torch.full((40, 2, 1), -1), labelled=torch.zeros(40, dtype=torch.bool))
    tables = compute_replacements(model.dense, none, ablation=Ablation(), neurons={0, 1, 2})
    problem = Problem(model.dense, tables, selection, Budget(max_kl=1.0), patching=none)
    search = gradual._Search(problem)
    log_q = search.lessons.log_p[:, -1].double().exp().mean(0).log()
    expected = gradual.judge(ask_dense(model.dense, selection), lambda part: log_q.expand(len(part), 2, -1)).kl
    assert search.constant.kl == pytest.approx(expected)


def test_what_always_answers_alike_is_beaten_by_kl_or_beyond_chance() -> None:
    """By hand: a coin is right 10 times of 10 with 2^-10 < 1e-3, 9 times of 9 with 2^-9 > 1e-3."""
    constant = Judgement(0.5, 2.0, 100)
    assert Judgement(0.0, 2 * MOST_OF_CONSTANT, 100).beats(constant, "dense")
    assert not Judgement(1.0, 2 * MOST_OF_CONSTANT + 1e-9, 100).beats(constant, "dense")
    assert Judgement(1.0, 9.0, 10).beats(constant, "labels")
    assert not Judgement(1.0, 0.0, 9).beats(constant, "both")


def test_the_constant_answer_of_labels_is_the_most_frequent_one(model: LanguageModel) -> None:
    ids = torch.full((12,), 3)
    ids[:5] = 4
    prompts = replace(make_prompts(12, 6, seed=4), answer_ids=ids[:, None])
    found = judge_constant(ask_dense(model.dense, prompts), ask_dense(model.dense, HALF), "labels")
    assert found.accuracy == pytest.approx(7 / 12)


def test_units_are_scored_by_what_the_teacher_says(model: LanguageModel) -> None:
    lessons = ask_dense(model.dense, HALF)
    logits = torch.randn(len(HALF), 1, 37, generator=torch.Generator().manual_seed(5))
    dense, labels, both = (
        draw_likelihood(lessons, teacher, torch.Generator().manual_seed(6))(logits)  # type: ignore[arg-type]
        for teacher in ("dense", "labels", "both")
    )
    drawn = lessons.draw_tokens(torch.Generator().manual_seed(6))
    torch.testing.assert_close(dense, logits.log_softmax(-1).gather(-1, drawn[..., None]).sum())
    torch.testing.assert_close(labels, -label_loss(lessons, logits))
    torch.testing.assert_close(both, BESIDE_LABELS**0.5 * dense + labels)


def test_answers_that_cannot_be_told_from_the_prompts_are_refused(model: LanguageModel) -> None:
    """Answers drawn by lot: whatever is learnt from them, a held-out set shows that it is nothing."""
    generator = torch.Generator().manual_seed(7)
    prompts, selection = (
        replace(
            make_prompts(n, 6, seed=seed),
            answer_ids=torch.randint(3, 5, (n, 1), generator=generator),
            choice_ids=torch.tensor([[3, 4]]).expand(n, 2).contiguous(),
        )
        for n, seed in ((64, 8), (40, 9))
    )
    with pytest.raises(InputError, match=r"no smaller circuit was found that keeps min_accuracy 0\.1"):
        search_surgery(model, prompts, selection, rule=Budget(min_accuracy="0.1"), teacher="labels")
