"""Baselines: what else could have been kept."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from tiny import Case, cases, make_model, make_prompts

from exporter.circuit import Ablation, Circuit
from exporter.errors import InputError
from exporter.evidence.baselines import BASELINES, compare_baselines


@settings(max_examples=20)
@given(case=cases())
def test_each_has_the_circuits_ablation_and_is_no_larger(case: Case) -> None:
    circuit = case.circuit
    for choose in BASELINES.values():
        other = choose(case.model.dense, circuit, Random(0))
        case.model.dense.check_circuit(other)
        assert other.ablation == circuit.ablation
        assert len(other.heads) <= len(circuit.heads) and len(other.mlps) <= len(circuit.mlps)
        assert sum(len(units) for _, units in other.neurons) <= sum(len(units) for _, units in circuit.neurons)


def test_evaluations_by_hand() -> None:
    """With all that there is, a random circuit is the model itself; with nothing, all prompts get the same answer."""
    model, prompts = make_model(), make_prompts(20, 5)
    full = Circuit(heads=[(i, j) for i in range(2) for j in range(2)], mlps=(0, 1), ablation=Ablation(by="global"))
    found = compare_baselines(model, full, make_prompts(9, 5, seed=1), prompts)
    assert found["random"].kl == pytest.approx(0, abs=1e-9) and found["random"].agreement == 1
    assert found["nothing"].kl > 0.01
    assert compare_baselines(model, full, make_prompts(9, 5, seed=1), prompts) == found
    with pytest.raises(InputError, match=r"circuit names head a7\.h0"):
        compare_baselines(model, Circuit(heads=[(7, 0)], mlps=()), prompts, prompts)
