"""The prompts and the attention that a report shows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from bundles import make_tokenizer
from tiny import make_model, make_prompts
from torch import Tensor

from exporter.errors import InputError
from exporter.evidence.showing import choose_ranks, show_attention, show_prompts, write_after, write_tokens
from exporter.evidence.shown import SCALE, ShownAttention, ShownHead
from exporter.tasks.dataset import Dataset


def answer(*rows: list[float]) -> Callable[[Tensor, Tensor | None, int], Tensor]:
    """A model that gives each prompt, told by its first token, these logits at every answer position."""
    table = torch.tensor(rows)
    return lambda ids, mask, n_steps: table[ids[:, 0]][:, None].expand(-1, n_steps, -1)


def decode(ids: list[int]) -> str:
    return "".join("abcd"[token] for token in ids)


def test_the_worst_come_first_then_others_at_even_ranks() -> None:
    assert choose_ranks(900) == [0, 1, 2, 3, 4, 5, 228, 452, 676, 899] or len(choose_ranks(900)) == 10
    assert choose_ranks(900)[:6] == [0, 1, 2, 3, 4, 5] and choose_ranks(900)[-1] == 899
    assert choose_ranks(3) == [0, 1, 2]
    assert choose_ranks(7) == [0, 1, 2, 3, 4, 5, 6]


def test_a_prompt_shows_what_both_models_make_of_it() -> None:
    half = math.log(2)
    dense = answer([0.0, half, -50, -50], [0.0, 0, 0, 0], [5.0, 0, 0, 0])
    circuit = answer([half, 0.0, -50, -50], [0.0, 0, 0, 0], [5.0, 0, 0, 0])
    test = Dataset(torch.tensor([[2, 1], [0, 3]]), torch.tensor([[0, -1], [1, 3]]))
    unseen = Dataset(torch.tensor([[1, 1]]), torch.tensor([[2]]))
    kl = {"test": torch.tensor([0.0, 0.3]), "far": torch.tensor([0.1])}
    shown = show_prompts(dense, circuit, {"test": test, "far": unseen}, kl, decode)
    assert [(p.set, p.rank, p.of, p.kl) for p in shown] == [
        ("test", 1, 3, pytest.approx(0.3)), ("far", 2, 3, pytest.approx(0.1)), ("test", 3, 3, 0.0)
    ]  # fmt: skip
    worst = shown[0]
    assert (worst.tokens, worst.answers, worst.n_answers) == (["a", "d"], ["b", "d"], 2)
    assert [(g.token, round(g.probability, 3), g.right) for g in worst.dense.top[:2]] == [
        ("b", 0.667, True), ("a", 0.333, False)
    ]  # fmt: skip
    assert (worst.dense.predicted, worst.dense.right) == ("b", True)
    assert (worst.circuit.predicted, worst.circuit.right) == ("a", False)


def test_an_answer_of_several_tokens_shows_where_the_models_part() -> None:
    def answer_in_steps(*steps: int) -> Callable[[Tensor, Tensor | None, int], Tensor]:
        return lambda ids, mask, n_steps: torch.eye(4)[list(steps)][None]

    prompts = Dataset(
        torch.tensor([[3, 0, 1, 2]]),
        torch.tensor([[[1], [2], [3]]]),
        mask=torch.tensor([[False, True, True, True]]),
    )
    kl = {"test": torch.tensor([1.0])}
    (shown,) = show_prompts(answer_in_steps(1, 2, 3), answer_in_steps(1, 0, 3), {"test": prompts}, kl, decode)
    assert (shown.tokens, shown.answers) == (["a", "b"], ["c"])  # the padding is gone, and so is the second step
    assert (shown.dense.predicted, shown.circuit.predicted) == ("c", "a")
    assert (shown.dense.right, shown.circuit.right) == (True, False)


def test_a_token_is_written_behind_the_one_before() -> None:
    def strip(ids: list[int]) -> str:  # as decoders of the SentencePiece kind do
        return "".join([" x", " y", "z"][token] for token in ids).removeprefix(" ")

    assert write_tokens(strip, [0, 1, 2]) == ["x", " y", "z"]
    assert write_after(lambda ids: "\ufffd" if len(ids) == 1 else "\u00e9", 0, 1) == "\ufffd"  # two halves of a letter


def test_attention_is_of_the_heads_that_write_most() -> None:
    model, prompts = make_model(n_layers=2, n_heads=2), make_prompts(3, 5)
    shown = show_attention(model.dense, prompts, make_tokenizer().decode)
    assert shown is not None
    assert (shown.n_heads, [(h.layer, h.index) for h in shown.heads]) == (4, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert shown.tokens == [f"w{token}" for token in prompts.input_ids[0].tolist()] or len(shown.tokens) == 5
    for head in shown.heads:
        assert [len(row) for row in head.rows] == [1, 2, 3, 4, 5] and head.rows[0] == SCALE[-1]
        sums = [sum(SCALE.index(letter) for letter in row) / 63 for row in head.rows]
        assert sums == pytest.approx([1.0] * 5, abs=0.04)


def test_without_a_short_prompt_there_is_none() -> None:
    model = make_model(positions=64)
    assert show_attention(model.dense, make_prompts(2, 60), make_tokenizer().decode) is None


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"head 3\.1 is damaged"):
        ShownAttention(["a", "b"], 1, [ShownHead(3, 1, 1.0, ["-", "-"])])
