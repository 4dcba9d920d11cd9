"""Files that version 0.1.0 wrote before the package was rebuilt are still read: tests/data has one of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.bench.baseline import Baseline
from exporter.circuit import MLP, Ablation, Circuit, Head, decision_from_json, load_circuit
from exporter.graph.metadata import Origin
from exporter.outputs.manifest import Manifest
from exporter.search.journal import Journal

DATA = Path(__file__).parent / "data"


def test_a_circuit_with_its_trace() -> None:
    circuit, record = load_circuit(DATA / "circuit.json")
    assert circuit.ablation == Ablation(align="right")
    assert (record.alpha, record.order, len(record.trace)) == (0.05, "paper", 6 * 8 + 6)
    kept = {decision.component for decision in record.trace if not decision.removed}
    assert kept == {*circuit.heads, *map(MLP, circuit.mlps)}
    assert json.loads((DATA / "circuit.json").read_text()) == circuit.to_json() | record.to_json()


def test_a_manifest_and_its_graph() -> None:
    manifest = Manifest.load(DATA / "model.json")
    expected = Circuit(heads=((5, 0),), mlps=(), ablation=Ablation(by="global"))
    origin = Origin.read(DATA / "model.onnx")
    assert (manifest.get_circuit(), manifest.get_record().order) == (expected, "given")
    assert (origin.circuit, origin.record) == (expected, manifest.get_record())
    assert (origin.task.sha256, origin.options.precision) == (manifest.task.sha256, "int8")
    assert manifest.test.metrics == {}  # which it did not have
    assert (manifest.test.ece, manifest.test.paired, manifest.get_record().metric) == (None, None, "kl")


@pytest.mark.slow
def test_a_graph_of_the_earlier_weights_is_read_and_refused(run) -> None:
    """It was made from the checkpoint that version 0.1.0 bundled, which has been trained on since."""
    said = "weights of bundled .* are not those the circuit came from \\(a7853824dad0\\)"
    run.fails(3, said, "verify", DATA / "model.onnx")


def test_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "search.onnx.journal"
    path.write_bytes((DATA / "search.onnx.journal").read_bytes())
    key = json.loads(path.read_text().splitlines()[0][17:])["key"]
    with pytest.raises(SystemError), Journal(path, key, resume=True) as journal:
        decisions = journal.parse(decision_from_json)
        assert [str(d.component) for d in decisions] == [f"a5.h{i}" for i in range(8)]
        raise SystemError
    assert Head(5, 0) == decisions[0].component


def test_a_baseline() -> None:
    data = json.loads((DATA / "baseline.json").read_text())
    assert json.loads(Baseline.load(DATA / "baseline.json").to_json()) == data
