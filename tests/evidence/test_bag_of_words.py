"""A bag of words: what it reads of a prompt, what it is taught, and that it is told where it does the job."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import MissingRuntimeError
from exporter.evidence import bag_of_words
from exporter.evidence.bag_of_words import (
    can_learn,
    choose,
    cross_validate,
    fit_text,
    list_answers,
    make_folds,
    mark_right,
    name_classes,
    read_texts,
)
from exporter.evidence.fitness import describe_shortcut
from exporter.metrics.statistics import Accuracy
from exporter.tasks import TaskData
from exporter.tasks.dataset import Dataset


class Words:
    """A tokenizer whose token 7 is the word w7."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(f"w{token}" for token in ids)


def make_lines(n: int, *, seed: int = 0, told: bool = True) -> Dataset:
    """Prompts of four words; the first says which of two answers is right, or nothing does."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 30, (n, 4), generator=generator)
    right = torch.randint(2, (n,), generator=generator)
    ids[:, 0] = 4 + (right if told else torch.randint(2, (n,), generator=generator))
    return Dataset(ids, right, choice_ids=torch.tensor([[0, 1]]).expand(n, -1).contiguous())


def test_texts_lack_padding_and_the_answers_own_tokens() -> None:
    ids = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    answers = torch.tensor([[[-1], [8]], [[7], [9]]])  # one token; two, the first of which stands in the prompt
    prompts = Dataset(ids, answers, mask=torch.tensor([[False, True, True, True], [True] * 4]))
    assert read_texts(prompts, Words()) == ["w1 w2 w3", "w4 w5 w6"]
    assert list_answers(prompts) == [["8"], ["7 9"]]


def test_of_several_right_answers_the_commonest_is_taught() -> None:
    prompts = Dataset(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([[3, 9], [5, 9], [7, -1]]))
    assert name_classes([prompts]) == ["9", "9", "7"]
    assert name_classes([prompts[:1], prompts[1:]]) == ["9", "9", "7"]


def test_an_answer_is_right_as_a_whole() -> None:
    prompts = Dataset(torch.zeros(4, 3, dtype=torch.int64), torch.tensor([[[7], [9]]] * 3 + [[[-1], [9]]]))
    assert mark_right(prompts, ["7 9", "8 9", "9", "9"]).tolist() == [True, False, False, True]


def test_answers_are_chosen_among_a_prompts_choices() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]] * 3).numpy()
    assert choose(scores, ["a", "b", "c"], [{"b", "c"}, {"z"}, {"a"}]) == ["b", "a", "a"]
    assert choose(torch.tensor([0.5, -0.5]).numpy(), ["a", "b"], [{"a", "b"}] * 2) == ["b", "a"]


@settings(max_examples=30)
@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_without_any_fold_there_are_two_classes_to_learn(labels: list[str]) -> None:
    folds = make_folds(labels)
    assert len(folds) == len(labels)
    for fold in set(folds.tolist()):
        left = {label for label, own in zip(labels, folds, strict=True) if own != fold}
        assert not can_learn(labels) or len(left) > 1


def test_it_learns_what_a_word_tells_and_nothing_else() -> None:
    told = cross_validate([make_lines(40), make_lines(20, seed=1)], Words())
    assert told is not None and told.accuracy == 1
    untold = cross_validate([make_lines(200, told=False)], Words())
    assert untold is not None and untold.ci95[0] < 0.5
    assert cross_validate([make_lines(6)], Words()) is None


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_what_is_fitted_answers_other_prompts(kind: bag_of_words.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag_of_words, "STRENGTHS", (3.0,))
    text, others = fit_text([make_lines(60)], Words(), kind), make_lines(20, seed=2)
    assert mark_right(others, text.answer(read_texts(others, Words()))).all()
    assert text.settings["share"] == 1 and text.count_parameters() > 20


def test_one_right_answer_for_all_is_a_constant() -> None:
    prompts = make_lines(20)
    same = Dataset(prompts.input_ids, torch.full((20,), 5))
    text = fit_text([same], Words(), "logistic")
    assert text.answer(["whatever"]) == ["5"] and text.count_parameters() == 1 and text.settings == {}


def make_data(*, told: bool) -> TaskData:
    sets = [make_lines(60, seed=seed, told=told) for seed in range(3)]
    return TaskData("lines", {}, *sets, ood={})


def test_a_shortcut_is_told_of() -> None:
    good = dict.fromkeys(("patching", "selection"), Accuracy.of(60, 60))
    (warning,) = describe_shortcut("tiny", make_data(told=True), good, Words())
    assert "a bag of words does the job" in warning and "100.0%" in warning and "120 labelled" in warning
    assert describe_shortcut("tiny", make_data(told=False), good, Words()) == ()


def test_without_scikit_learn_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag_of_words, "is_installed", lambda: False)
    assert describe_shortcut("tiny", make_data(told=True), {}, Words()) == ()
    with pytest.raises(MissingRuntimeError, match=r"export-circuit\[compare\]"):
        bag_of_words.require_sklearn()
