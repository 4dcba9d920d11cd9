"""A circuit is plain data: it round-trips, and refuses what it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.circuit import MLP, Ablation, Circuit, Component, Decision, Head, Neuron, SearchRecord, parse_component
from exporter.errors import InputError

numbers = st.floats(allow_nan=False, allow_infinity=False)
heads = st.builds(Head, st.integers(0, 50), st.integers(0, 50))
components: st.SearchStrategy[Component] = st.one_of(
    heads, st.builds(MLP, st.integers(0, 50)), st.builds(Neuron, st.integers(0, 50), st.integers(0, 5000))
)
circuits = st.builds(
    Circuit,
    heads=st.lists(heads, unique=True).map(tuple),
    mlps=st.lists(st.integers(0, 50), unique=True).map(tuple),
    ablation=st.builds(
        Ablation,
        st.sampled_from(["mean", "zero"]),
        st.sampled_from(["position", "global"]),
        st.sampled_from(["left", "right"]),
    ),
    neurons=st.dictionaries(st.integers(51, 60), st.lists(st.integers(0, 3000), unique=True)),
)
records = st.builds(
    SearchRecord,
    alpha=st.none() | numbers,
    order=st.sampled_from(["paper", "given"]),
    kl=st.none() | numbers,
    trace=st.lists(st.builds(Decision, components, numbers, numbers, st.booleans())).map(tuple),
)


@given(circuit=circuits, record=records)
def test_round_trips_through_json(circuit: Circuit, record: SearchRecord) -> None:
    """Each alone, and both in one object, as manifests have them."""
    assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit
    both = json.loads(json.dumps(circuit.to_json() | record.to_json()))
    assert (Circuit.from_json(both), SearchRecord.from_json(both)) == (circuit, record)


@given(component=components)
def test_components_round_trip_through_their_names(component: Component) -> None:
    assert parse_component(str(component)) == component


def test_save_and_load(tmp_path: Path) -> None:
    circuit = Circuit(heads=(Head(9, 6), Head(1, 0)), mlps=(3, 1))
    circuit.save(tmp_path / "c.json")
    assert Circuit.load(tmp_path / "c.json") == circuit
    assert circuit.heads == (Head(1, 0), Head(9, 6))  # sorted
    assert circuit.mlps == (1, 3)


def test_a_manifest_is_a_circuit_file_too(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "circuit": {"heads": [[0, 1]], "mlps": []}}))
    assert Circuit.load(tmp_path / "m.json").heads == (Head(0, 1),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not list"),
        ({"heads": []}, "no 'mlps'"),
        ({"heads": [], "mlps": [], "mlp": []}, "unknown field 'mlp'"),
        ({"heads": [[1]], "mlps": []}, "a list of 2 integers"),
        ({"heads": [[1, -1]], "mlps": []}, "integers from 0"),
        ({"heads": [[True, 1]], "mlps": []}, "integers from 0"),
        ({"heads": 3, "mlps": []}, "heads must be a list"),
        ({"heads": [], "mlps": ["1"]}, "mlps must be"),
        ({"heads": [], "mlps": [], "ablation": "none"}, "choose from mean, zero"),
        ({"heads": [], "mlps": [], "mean": 3}, "choose from position, global"),
        ({"heads": [], "mlps": [], "alpha": "big"}, "alpha must be a finite number"),
        ({"heads": [], "mlps": [], "kl": float("inf")}, "kl must be a finite number"),
        ({"heads": [], "mlps": [], "trace": [{"component": "x"}]}, "unknown component 'x'"),
        ({"heads": [], "mlps": [], "trace": [3]}, "a trace entry needs"),
    ],
)
def test_what_is_no_circuit_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        Circuit.load(tmp_path / "c.json")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="is not JSON"):
        Circuit.load(tmp_path / "c.json")
    with pytest.raises(InputError, match="No such file"):
        Circuit.load(tmp_path / "none.json")


def test_the_length_is_fixed_by_means_by_position_only() -> None:
    assert Circuit(heads=(), mlps=()).fixed_length
    assert not Circuit(heads=(), mlps=(), ablation=Ablation(by="global")).fixed_length
    assert not Circuit(heads=(), mlps=(), ablation="zero").fixed_length
