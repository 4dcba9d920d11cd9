"""Faithfulness figures, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from exporter.evidence.evaluate import AnswerLogits, evaluate_circuit, evaluate_dense
from exporter.metrics.statistics import Accuracy
from exporter.tasks.dataset import Dataset


def look_up(table: torch.Tensor) -> AnswerLogits:
    """A model whose logits are rows of a table, by each prompt's first token: (row, vocab) or (row, step, vocab)."""
    rows = table if table.ndim == 3 else table[:, None]
    return lambda ids, mask, n_steps: rows[ids[:, 0]][:, -n_steps:]


def test_wilson_interval_by_hand() -> None:
    """Newcombe (1998), table I: 81 of 263, Wilson score interval .2553 to .3662."""
    found = Accuracy.of(81, 263)
    assert found.accuracy == 81 / 263
    assert found.ci95 == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy.of(10, 10).ci95[1] == 1.0


def test_kl_accuracy_and_agreement_by_hand() -> None:
    """Two prompts, two tokens: dense says (.8, .2) and (.5, .5 - a bit), the circuit (.5, .5 - a bit) and (.2, .8)."""
    dense = torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log()
    circuit = torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log()
    data = Dataset(torch.tensor([[0], [1]]), torch.tensor([0, 1]))
    found = evaluate_circuit(look_up(dense), look_up(circuit), data)
    expected = (
        0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4) + 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
    ) / 2
    assert found.kl == pytest.approx(expected, rel=1e-5)  # float32 logits
    assert (found.dense.accuracy, found.circuit.accuracy, found.agreement, found.n) == (0.5, 1.0, 0.5, 2)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    table = torch.randn(2, 50, 7)
    data = Dataset(torch.arange(50)[:, None], torch.randint(7, (50,)))
    whole = evaluate_circuit(look_up(table[0]), look_up(table[1]), data)
    monkeypatch.setattr("exporter.evidence.evaluate.CHUNK", 7)
    parts = evaluate_circuit(look_up(table[0]), look_up(table[1]), data)
    assert parts.kl == pytest.approx(whole.kl)
    assert (parts.circuit, parts.agreement) == (whole.circuit, whole.agreement)
    assert evaluate_dense(look_up(table[0]), data) == whole.dense


def test_answers_of_several_tokens_by_hand() -> None:
    """The first prompt has one answer position, the second two; what stands at the first's other one is not counted."""
    dense = torch.tensor([[[0.1, 0.9], [0.8, 0.2]], [[0.6, 0.4], [0.3, 0.7]]]).log()  # (prompt, step, vocab)
    circuit = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.4, 0.6], [0.3, 0.7]]]).log()
    data = Dataset(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[[-1], [0]], [[0], [1]]]))
    found = evaluate_circuit(look_up(dense), look_up(circuit), data)
    assert found.kl == pytest.approx((0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6)) / 3, rel=1e-5)
    assert (found.dense.accuracy, found.circuit.accuracy, found.agreement, found.n) == (1.0, 0.5, 0.5, 2)
    assert evaluate_dense(look_up(dense), data).accuracy == 1.0


def test_choices_are_what_is_compared() -> None:
    dense = torch.tensor([[0.1, 0.2, 0.7], [0.2, 0.1, 0.7]]).log()
    circuit = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.4, 0.3]]).log()
    ids, answers = torch.tensor([[0], [1]]), torch.tensor([1, 0])
    data = Dataset(ids, answers, choice_ids=torch.tensor([[0, 1], [0, 1]]))
    found = evaluate_circuit(look_up(dense), look_up(circuit), data)
    assert (found.dense.accuracy, found.circuit.accuracy, found.agreement) == (1.0, 0.5, 0.5)
    assert evaluate_dense(look_up(dense), Dataset(ids, answers)).accuracy == 0.0
