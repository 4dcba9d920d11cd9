"""A circuit file with neurons, through the whole job: graph, gate, bundle, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiers import as_slow

from exporter.circuit import load_circuit
from exporter.outputs.manifest import Manifest

FEW = ("--patching-prompts", "20", "--selection-prompts", "20", "--test-prompts", "20")


@pytest.mark.parametrize("options", [as_slow(((),)), ("--mean",)], ids=["by position", "free length"])
def test_a_circuit_with_neurons_is_exported(
    options: tuple[str, ...], run: Any, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model, circuit = make_checkpoint(n_layer=3, n_head=2), tmp_path / "c.json"
    data: dict[str, Any] = {"heads": [[0, 1], [2, 0]], "mlps": [2], "neurons": {"0": [3, 0, 5], "1": []}}
    circuit.write_text(json.dumps(data | ({"mean": "global"} if options else {})))
    job = ("--task", "acronym", "--model", model, "--circuit", circuit, "--bundle", tmp_path / "b", *FEW)
    assert "neurons of other MLPs" in run.succeeds(*job)
    manifest = Manifest.load(tmp_path / "b" / "model.json")
    assert manifest.circuit["neurons"] == {"0": [0, 3, 5], "1": []}
    assert load_circuit(circuit)[0] == manifest.get_circuit() == load_circuit(tmp_path / "b" / "model.json")[0]
    assert manifest.exactness.hooked_vs_rewritten <= manifest.exactness.limit
    assert "3 neurons of 2 other MLPs" in (tmp_path / "b" / "README.md").read_text()
    assert "0 neurons" in run.succeeds("inspect", tmp_path / "b" / "model.onnx")
    assert "is exact" in run.succeeds("verify", tmp_path / "b" / "model.onnx")


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ({"0": [5000]}, r"circuit names neuron m0\.n5000, but the model has neurons 0\.\."),
        ({"7": [0]}, "circuit names MLP m7, but the model has layers 0..2"),
        ({"2": [0]}, "mlps and neurons has m2 twice"),
        ({"x": [0]}, "neurons has the layer 'x'; give layers as whole numbers"),
        ({"0": 1}, "neurons of layer 0 must be a list"),
        ([1], "neurons must be an object of layers and hidden units"),
    ],
)
def test_neurons_that_are_none_are_refused(
    neurons: object, message: str, run: Any, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"heads": [], "mlps": [2], "neurons": neurons}))
    job = ("--task", "acronym", "--model", make_checkpoint(n_layer=3), "--circuit", tmp_path / "c.json")
    run.fails(3, message, *job, "--out", tmp_path / "m.onnx", *FEW)
