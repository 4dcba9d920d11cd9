"""Faithfulness figures, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from exporter.dataset import Dataset
from exporter.evaluate import Accuracy, evaluate_circuit


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
    found = evaluate_circuit(lambda ids: dense[ids[:, 0]], lambda ids: circuit[ids[:, 0]], data)
    expected = (
        0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4) + 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
    ) / 2
    assert found.kl == pytest.approx(expected, rel=1e-5)  # float32 logits
    assert (found.dense.accuracy, found.circuit.accuracy, found.agreement, found.n) == (0.5, 1.0, 0.5, 2)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    table = torch.randn(2, 50, 7)
    data = Dataset(torch.arange(50)[:, None], torch.randint(7, (50,)))
    whole = evaluate_circuit(lambda ids: table[0][ids[:, 0]], lambda ids: table[1][ids[:, 0]], data)
    monkeypatch.setattr("exporter.evaluate.CHUNK", 7)
    parts = evaluate_circuit(lambda ids: table[0][ids[:, 0]], lambda ids: table[1][ids[:, 0]], data)
    assert parts.kl == pytest.approx(whole.kl)
    assert (parts.circuit, parts.agreement) == (whole.circuit, whole.agreement)
