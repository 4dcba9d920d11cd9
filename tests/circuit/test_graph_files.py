"""Graph files of EAP-IG and MIB: what is written comes back, nothing in them is NaN, and what is wrong is named."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import make_model

from exporter.circuit import (
    Ablation,
    Circuit,
    Decision,
    GraphShape,
    Head,
    SearchRecord,
    graph_to_json,
    list_hooks,
    load_circuit,
    parse_component,
    read_circuit_file,
)
from exporter.circuit.node_graph import OWN_KEY
from exporter.errors import InputError

SMALL = GraphShape(n_layers=1, n_heads=2, d_model=8)


@st.composite
def fitting(draw: st.DrawFn) -> tuple[GraphShape, Circuit, SearchRecord]:
    """A model's sizes, a circuit in it, and a search that tried some of its components."""
    shape = GraphShape(draw(st.integers(0, 3)), draw(st.integers(0, 3)), 8, 5, draw(st.booleans()))
    names = shape.nodes()[1:]
    kept = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    parts = {
        name: draw(st.lists(st.integers(0, 4), unique=True)) for name in names if name[0] == "m" and draw(st.booleans())
    }
    components = [parse_component(name) for name in kept if name not in parts]
    circuit = Circuit(
        heads=tuple(c for c in components if isinstance(c, Head)),
        mlps=tuple(c.layer for c in components if not isinstance(c, Head)),
        ablation=draw(st.sampled_from([Ablation("zero"), Ablation("mean", "global"), Ablation(align="right")])),
        neurons={parse_component(name).layer: units for name, units in parts.items()},
    )
    tried = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    increases = st.floats(-2, 2)
    trace = [Decision(parse_component(name), 0.5, 0.5 + draw(increases), name not in kept) for name in tried]
    return shape, circuit, SearchRecord(alpha=draw(st.none() | st.floats(0.01, 1)), trace=tuple(trace))


def through_json(data: dict[str, Any]) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))  # raises for a NaN


@settings(max_examples=examples(100))
@given(case=fitting())
def test_a_circuit_comes_back(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[GraphShape, Circuit, SearchRecord]
) -> None:
    shape, circuit, record = case
    path = tmp_path_factory.getbasetemp() / "graph.json"
    path.write_text(json.dumps(through_json(graph_to_json(circuit, shape, record))))
    assert load_circuit(path) == (circuit, SearchRecord())


@settings(max_examples=examples(100))
@given(case=fitting())
def test_all_nodes_have_a_score_or_none_has(case: tuple[GraphShape, Circuit, SearchRecord]) -> None:
    shape, circuit, record = case
    graph = through_json(graph_to_json(circuit, shape, record))
    scores = [node.get("score") for name, node in graph["nodes"].items() if name != "logits"]
    assert (None in scores) == (not record.trace) and len({type(score) for score in scores}) == 1
    assert all(isinstance(edge["score"], float) for edge in graph["edges"].values())


@settings(max_examples=examples(100))
@given(case=fitting())
def test_there_are_as_many_edges_as_the_sizes_say(case: tuple[GraphShape, Circuit, SearchRecord]) -> None:
    shape = case[0]
    edges = list(shape.edges())
    assert len({name for name, _, _ in edges}) == len(edges) == shape.n_edges
    assert shape.n_nodes == len(shape.nodes())


def test_the_smallest_graph_by_hand() -> None:
    """One layer of two heads, of which one stays; the edges that EAP-IG's `Graph.from_model` makes."""
    record = SearchRecord(
        alpha=0.1, trace=(Decision(Head(0, 0), 0.0, 0.25, False), Decision(Head(0, 1), 0.5, 0.25, True))
    )
    graph = graph_to_json(Circuit(heads=((0, 0),), mlps=(), ablation="zero"), SMALL, record)
    assert graph["cfg"] == {"n_layers": 1, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False}
    assert graph["nodes"] == {
        "input": {"in_graph": True, "score": 0.5},  # twice the largest
        "a0.h0": {"in_graph": True, "score": 0.25},
        "a0.h1": {"in_graph": False, "score": 0.0},  # its removal lowered the KL
        "m0": {"in_graph": False, "score": 0.0},
        "logits": {"in_graph": True},
    }
    on = {name for name, edge in graph["edges"].items() if edge["in_graph"]}
    from_input = {f"input->a0.h{head}<{x}>" for head in (0, 1) for x in "qkv"} | {"input->m0", "input->logits"}
    assert on == from_input | {"a0.h0->m0", "a0.h0->logits"}
    assert set(graph["edges"]) - on == {"a0.h1->m0", "a0.h1->logits", "m0->logits"}
    assert graph["edges"]["a0.h0->m0"]["score"] == 0.25


def test_in_parallel_blocks_heads_do_not_feed_the_mlp_of_their_layer() -> None:
    parallel = GraphShape(2, 1, 8, parallel_attn_mlp=True)
    names = {name for name, _, _ in parallel.edges()}
    assert "a0.h0->m0" not in names and "a0.h0->m1" in names


def test_alpha_separates_what_stays_by_score() -> None:
    """Also what was never tried: it stays and ranks above, or was removed and has 0."""
    trace = tuple(Decision(Head(0, index), 0.0, kl, kl < 0.1) for index, kl in enumerate((0.3, 0.1, 0.05)))
    circuit = Circuit(heads=((0, 0), (0, 1)), mlps=(0,))
    graph = graph_to_json(circuit, GraphShape(2, 3, 8), SearchRecord(alpha=0.1, trace=trace))
    nodes = {name: node for name, node in graph["nodes"].items() if name != "logits"}
    assert {name for name, node in nodes.items() if node["score"] >= 0.1} == {"input", "a0.h0", "a0.h1", "m0"}
    assert {name for name, node in nodes.items() if node["in_graph"]} == {"input", "a0.h0", "a0.h1", "m0"}


def test_hidden_units_stand_under_a_key_of_our_own() -> None:
    circuit = Circuit(heads=(), mlps=(), neurons={0: (1, 3), 1: ()})
    graph = graph_to_json(circuit, GraphShape(2, 1, 8, 4))
    assert graph["nodes"]["m0"] == {"in_graph": True}  # without `neurons`, which are dimensions of its output there
    assert graph["nodes"]["m1"] == {"in_graph": False}
    assert graph[OWN_KEY]["neurons"] == {"0": [1, 3], "1": []}


@pytest.mark.parametrize(("family", "parallel"), [("gpt2", False), ("llama", False), ("gpt_neox", True)])
def test_the_sizes_are_the_models(family: str, parallel: bool) -> None:
    """Query heads, also where two of them share keys and values."""
    config = {"llama": {"num_key_value_heads": 2}, "gpt_neox": {"use_parallel_residual": True}}.get(family, {})
    model = make_model(family, n_layers=3, n_heads=4, d_mlp=10, **config)
    assert model.dense.shape == GraphShape(3, 4, 16, 10, parallel)


def make_graph() -> Any:
    return through_json(graph_to_json(Circuit(heads=((0, 0),), mlps=(0,)), SMALL))


def test_their_nan_is_no_score(tmp_path: Path) -> None:
    graph = make_graph()
    for name, score in {"input": math.nan, "a0.h0": -0.5, "a0.h1": math.nan, "m0": 0.25}.items():
        graph["nodes"][name]["score"] = score
    (tmp_path / "g.json").write_text(json.dumps(graph))
    file = read_circuit_file(tmp_path / "g.json")
    assert {str(component): score for component, score in file.scores.items()} == {"a0.h0": 0.5, "m0": 0.25}


LOSSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an edge between kept nodes": (
        lambda g: g["edges"]["a0.h0->m0"].update(in_graph=False), "cuts 1 of the 8 edges between"
    ),
    "the embedding": (lambda g: g["nodes"]["input"].update(in_graph=False), "removes the token embedding"),
    "dimensions": (lambda g: g["nodes"]["m0"].update(neurons=[True, False]), "some dimensions of 1 nodes, such as m0"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_what_whole_nodes_do_not_keep_is_told_and_refused_by_a_job(tmp_path: Path, name: str) -> None:
    spoil, message = LOSSES[name]
    graph = make_graph()
    spoil(graph)
    (tmp_path / "g.json").write_text(json.dumps(graph))
    file = read_circuit_file(tmp_path / "g.json")
    assert len(file.losses) == 1 and message in file.losses[0]
    assert file.circuit == Circuit(heads=((0, 0),), mlps=(0,))
    with pytest.raises(InputError, match="export-circuit convert"):
        load_circuit(tmp_path / "g.json")


def test_edges_into_removed_nodes_do_not_matter(tmp_path: Path) -> None:
    """Their `prune` takes them out."""
    graph = make_graph()
    for x in "qkv":
        graph["edges"][f"input->a0.h1<{x}>"]["in_graph"] = False
    (tmp_path / "g.json").write_text(json.dumps(graph))
    assert load_circuit(tmp_path / "g.json")[0] == Circuit(heads=((0, 0),), mlps=(0,))


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cfg is a list": (lambda g: g.update(cfg=[]), "cfg must be an object"),
    "no d_model": (lambda g: g["cfg"].pop("d_model"), "cfg has no d_model"),
    "half a layer": (lambda g: g["cfg"].update(n_layers=0.5), "n_layers must be a whole number"),
    "a model without end": (lambda g: g["cfg"].update(n_layers=10**15), "nodes has 4 entries"),
    "parallel is a number": (lambda g: g["cfg"].update(parallel_attn_mlp=1), "parallel_attn_mlp must be bool"),
    "a node too few": (lambda g: g["nodes"].pop("m0"), "nodes has 3 entries, and cfg makes it 4"),
    "another node": (lambda g: g["nodes"].update(m7=g["nodes"].pop("m0")), "'m7', which a model of this cfg lacks"),
    "nodes are flags": (lambda g: g["nodes"].update(m0=True), "True at 'm0'"),
    "nodes are a list": (lambda g: g.update(nodes=[]), "nodes must be an object"),
    "in_graph is a number": (lambda g: g["nodes"]["m0"].update(in_graph=1), "in_graph of m0 must be true or false"),
    "an edge is undecided": (lambda g: g["edges"]["m0->logits"].pop("in_graph"), "in_graph of m0->logits"),
    "an edge too few": (lambda g: g["edges"].pop("m0->logits"), "edges has 12 entries, and cfg makes it 13"),
    "another edge": (lambda g: g["edges"].update(x=g["edges"].pop("m0->logits")), "edges has no m0->logits"),
    "score is a text": (lambda g: g["nodes"]["m0"].update(score="1"), "score of m0 must be a finite number"),
    "score is infinite": (lambda g: g["nodes"]["m0"].update(score=math.inf), "score of m0 must be a finite number"),
    "neurons are a number": (lambda g: g["nodes"]["m0"].update(neurons=3), "neurons of m0 must be a list"),
    "our key is a list": (lambda g: g.update({OWN_KEY: []}), f"{OWN_KEY} must be an object"),
    "our key has more": (lambda g: g[OWN_KEY].update(heads=[]), f"{OWN_KEY} must be an object"),
    "units of no MLP": (lambda g: g[OWN_KEY].update(neurons={"5": [1]}), "its node says otherwise"),
    "no units of a node": (lambda g: g[OWN_KEY].update(neurons={"0": []}), "its node says otherwise"),
    "units are a list": (lambda g: g[OWN_KEY].update(neurons=[1]), "neurons of export_circuit must be an object"),
    "another ablation": (lambda g: g[OWN_KEY].update(ablation="patching"), "ablation is 'patching'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    graph = make_graph()
    spoil(graph)
    (tmp_path / "g.json").write_text(json.dumps(graph))
    with pytest.raises(InputError) as caught:
        load_circuit(tmp_path / "g.json")
    assert message in str(caught.value) and len(str(caught.value).removeprefix(str(tmp_path))) < 240


def test_a_spoilt_graph_is_not_the_good_one() -> None:
    """Each change above is one: else its test could not fail."""
    for spoil, _ in (*BAD.values(), *LOSSES.values()):
        graph = make_graph()
        before = copy.deepcopy(graph)
        spoil(graph)
        assert json.dumps(graph) != json.dumps(before)  # 1 is True to Python


def test_a_component_that_the_model_lacks_is_refused() -> None:
    for circuit in (Circuit(heads=((0, 2),), mlps=()), Circuit(heads=(), mlps=(1,))):
        with pytest.raises(InputError, match="circuit names"):
            graph_to_json(circuit, SMALL)


def test_hook_points_by_hand() -> None:
    circuit = Circuit(heads=((9, 6),), mlps=(3,), neurons={4: (17,)})
    assert list_hooks(circuit) == {
        "a9.h6": {"hook": "blocks.9.attn.hook_z", "index": 6},
        "m3": {"hook": "blocks.3.hook_mlp_out"},
        "m4.n17": {"hook": "blocks.4.mlp.hook_post", "index": 17},
    }
