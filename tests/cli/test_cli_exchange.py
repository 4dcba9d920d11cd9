"""`convert`: ours to theirs and back, and the main job on a graph file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from exporter.circuit import Circuit, Decision, Head, SearchRecord, load_circuit

SMALL = ("--patching-prompts", "20", "--selection-prompts", "20", "--test-prompts", "30")


def test_there_and_back(tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]) -> None:
    circuit = Circuit(heads=((0, 1),), mlps=(1,), neurons={0: (2, 5)})
    circuit.save(tmp_path / "c.json", SearchRecord(alpha=0.1, trace=(Decision(Head(0, 1), 0.0, 0.5, False),)))
    model, graph = make_checkpoint(), tmp_path / "g.json"
    code, shown, said = run.all("convert", tmp_path / "c.json", "--to", "eap-ig", "--model", model, "--out", graph)
    assert (code, "kept in part are whole nodes" in said, "1 heads, 1 MLPs, 2 hidden units" in shown) == (0, True, True)
    run.succeeds("convert", graph, "--to", "circuit", "--out", tmp_path / "d.json")
    assert load_circuit(tmp_path / "d.json") == (circuit, SearchRecord())
    run.succeeds("convert", graph, "--to", "hooks", "--out", tmp_path / "h.json")
    assert json.loads((tmp_path / "h.json").read_text())["m0.n5"] == {"hook": "blocks.0.mlp.hook_post", "index": 5}


def test_a_circuit_of_edges_is_converted_with_a_warning_and_refused_by_a_job(
    tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]
) -> None:
    graph = convert_circuit(run, tmp_path, make_checkpoint())
    edges = json.loads(graph.read_text())
    edges["edges"]["a0.h1->m1"]["in_graph"] = False
    graph.write_text(json.dumps(edges))
    run.fails(3, "cuts 1 of the", "--task", "acronym", "--circuit", graph, "--out", tmp_path / "m.onnx")
    code, _, said = run.all("convert", graph, "--to", "circuit", "--out", tmp_path / "d.json")
    assert code == 0 and "warning: the graph cuts 1 of the" in said


@pytest.mark.slow
def test_the_main_job_takes_a_graph_file(tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]) -> None:
    model = make_checkpoint()
    graph = convert_circuit(run, tmp_path, model)
    job = ("--task", "acronym", "--model", model, "--force", *SMALL, "--json")
    manifest = json.loads(run.succeeds(*job, "--circuit", graph, "--out", tmp_path / "m.onnx"))
    assert manifest["circuit"]["heads"] == [[0, 1]] and manifest["circuit"]["mlps"] == [1]


def convert_circuit(run: Run, folder: Path, model: Path) -> Path:
    Circuit(heads=((0, 1),), mlps=(1,)).save(folder / "c.json")
    run.succeeds("convert", folder / "c.json", "--to", "eap-ig", "--model", model, "--out", folder / "g.json")
    return folder / "g.json"


def test_bad_arguments(tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]) -> None:
    Circuit(heads=((0, 1),), mlps=()).save(tmp_path / "c.json")
    convert = ("convert", tmp_path / "c.json", "--out", tmp_path / "g.json", "--to")
    run.fails(2, "--model is missing", *convert, "eap-ig")
    run.fails(2, "--model is for --to eap-ig", *convert, "hooks", "--model", "bundled")
    run.fails(2, "ends in .json", "convert", tmp_path / "c.json", "--to", "hooks", "--out", tmp_path / "g.txt")
    Circuit(heads=((0, 99),), mlps=()).save(tmp_path / "c.json")
    run.fails(3, "circuit names head a0.h99", *convert, "eap-ig", "--model", make_checkpoint())
    assert not (tmp_path / "g.json").exists()
    (tmp_path / "g.json").write_text("mine")
    run.fails(3, "--force", *convert, "hooks")
    assert (tmp_path / "g.json").read_text() == "mine"


def test_a_manifest_names_its_model(run: Run, tmp_path: Path) -> None:
    manifest = Path(__file__).parent.parent / "data" / "model.json"
    run.succeeds("convert", manifest, "--to", "hooks", "--out", tmp_path / "h.json")
    named = json.loads(manifest.read_text())
    named["model"]["name"] = "no-such-model-here/x"
    (tmp_path / "m.json").write_text(json.dumps(named))
    run.fails(3, "no-such-model-here", "convert", tmp_path / "m.json", "--to", "eap-ig", "--out", tmp_path / "g.json")
