"""Answers that have nothing to do with their prompts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_prompts

from exporter.tasks.dataset import Dataset


def shuffle(prompts: Dataset, seed: int = 0) -> Dataset:
    return prompts.shuffle_answers(torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 99), padded=st.booleans(), unlabelled=st.booleans(), n=st.integers(2, 40))
def test_answers_are_permuted_among_prompts_that_have_one(seed: int, padded: bool, unlabelled: bool, n: int) -> None:
    prompts = make_prompts(n, 5, seed=seed, padded=padded, unlabelled=unlabelled)
    before = prompts.answer_ids.clone()
    found = shuffle(prompts, seed)
    assert sorted(found.answer_ids.tolist()) == sorted(before.tolist())
    assert torch.equal(found.is_labelled, prompts.is_labelled)
    assert torch.equal(found.known, prompts.known)
    assert torch.equal(found.input_ids, prompts.input_ids) and torch.equal(prompts.answer_ids, before)
    assert torch.equal(shuffle(prompts, seed).answer_ids, found.answer_ids)


def test_by_hand() -> None:
    prompts = Dataset(torch.arange(6)[:, None], torch.arange(6))
    orders = {tuple(shuffle(prompts, seed).answer_ids[:, 0].tolist()) for seed in range(20)}
    assert len(orders) > 15 and all(sorted(order) == list(range(6)) for order in orders)
    assert any(order[0] != 0 for order in orders)


def test_answers_of_several_tokens_take_their_first_tokens_along() -> None:
    """Prompts 1 and 2 answer 11 12 and 21 22, of which the first is read; 3 and 4 answer 33 and 44."""
    ids = torch.tensor([[1, 11], [2, 21], [8, 3], [9, 4]])
    steps = torch.tensor([[[11], [12]], [[21], [22]], [[-1], [33]], [[-1], [44]]])
    prompts, seen = Dataset(ids, steps), set()
    for seed in range(20):
        found = shuffle(prompts, seed)
        assert torch.equal(found.known, prompts.known)
        assert torch.equal(found.input_ids[:, 0], ids[:, 0]) and torch.equal(found.input_ids[2:], ids[2:])
        assert torch.equal(found.input_ids[:2, 1], found.answer_ids[:2, 0, 0])  # what is read is what was to be said
        assert {tuple(row) for row in found.answer_ids[:2, :, 0].tolist()} == {(11, 12), (21, 22)}
        assert {int(row) for row in found.answer_ids[2:, 1, 0]} == {33, 44}
        seen.add((int(found.answer_ids[0, 0, 0]), int(found.answer_ids[2, 1, 0])))
    assert seen == {(11, 33), (11, 44), (21, 33), (21, 44)}


def test_with_choices_of_their_own_prompts_draw_among_them() -> None:
    choices = torch.tensor([[5, 6, -1], [7, 8, 9]])
    prompts = Dataset(torch.tensor([[1], [2]]), torch.tensor([[5, -1], [8, 9]]), choice_ids=choices)
    seen = set()
    for seed in range(40):
        answers = shuffle(prompts, seed).answer_ids
        assert answers[0, 1] == -1 and answers[0, 0] in (5, 6)
        assert len(set(answers[1].tolist())) == 2 and set(answers[1].tolist()) <= {7, 8, 9}
        seen.add((int(answers[0, 0]), tuple(sorted(answers[1].tolist()))))
    assert seen == {(a, b) for a in (5, 6) for b in ((7, 8), (7, 9), (8, 9))}


def test_choices_that_all_share_leave_each_answer_as_often_as_it_was() -> None:
    """Also where one of the two lists them the other way round, and a prompt without an answer has none."""
    choices = torch.tensor([[5, 6], [6, 5], [5, 6], [-1, -1]])
    labelled = torch.tensor([True, True, True, False])
    answers = torch.tensor([5, 5, 6, -1])
    prompts = Dataset(torch.arange(4)[:, None], answers, choice_ids=choices, labelled=labelled)
    orders = {tuple(shuffle(prompts, seed).answer_ids[:, 0].tolist()) for seed in range(20)}
    assert orders == {(5, 5, 6, -1), (5, 6, 5, -1), (6, 5, 5, -1)}
