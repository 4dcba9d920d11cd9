"""Write a circuit as a graph file of EAP-IG, the MIB benchmark and circuitkit.

A node that stays keeps every outgoing edge, as their `apply_topn(level="node")` does. A node's score is what the search
saw when it tried to remove the component, the increase of the KL; negative ones become 0, because their readers rank by
magnitude. Where there are scores, each node has one: their reader takes a node without (NaN) for one that always
stays. What was never tried and stays, such as the token embedding, ranks above all that was; what was removed untried
has 0. So their `apply_threshold(alpha, level="node")` gives the circuit of a greedy search back.
"""

from __future__ import annotations

from typing import Any

from exporter.circuit.circuit import Circuit
from exporter.circuit.components import parse_component
from exporter.circuit.node_graph import INPUT, LOGITS, OWN_KEY, GraphShape
from exporter.circuit.record import SearchRecord


def graph_to_json(circuit: Circuit, shape: GraphShape, record: SearchRecord | None = None) -> dict[str, Any]:
    """The JSON value of a graph file, with the scores of the search where `record` has any.

    An MLP that keeps some hidden units is a node that stays whole; the units are under a key of our own. Edges must
    have a score: their source's, or without scores 1 for those that stay and 0 for the others. Raises InputError: a
    component that a model of this shape lacks.
    """
    largest = max((unit for _, units in circuit.neurons for unit in units), default=0)
    circuit.check_fits(n_layers=shape.n_layers, n_heads=shape.n_heads, d_mlp=shape.d_mlp or largest + 1)
    kept = {name for name in shape.nodes() if name == INPUT or circuit.keeps_any(parse_component(name))}
    scores = {} if record is None else _score_nodes(shape, kept, record)
    nodes = {name: {"in_graph": name in kept} | _maybe_score(scores, name) for name in shape.nodes()}
    edges = {
        name: {"in_graph": source in kept, "score": scores.get(source, float(source in kept))}
        for name, source, _ in shape.edges()
    }
    own = {key: value for key, value in circuit.to_json().items() if key not in ("heads", "mlps")}
    return {
        "cfg": shape.to_json(),
        "nodes": nodes | {LOGITS: {"in_graph": True}},
        "edges": edges,
        OWN_KEY: own,
    }


def _score_nodes(shape: GraphShape, kept: set[str], record: SearchRecord) -> dict[str, float]:
    """A score for each node, or none at all where the search has none."""
    tried = {str(component): max(0.0, score) for component, score in record.scores.items()}
    if not tried:
        return {}
    above = 2 * max(record.alpha or 0.0, *tried.values()) or 1.0
    return {name: tried.get(name, above if name in kept else 0.0) for name in shape.nodes()}


def _maybe_score(scores: dict[str, float], name: str) -> dict[str, float]:
    return {"score": scores[name]} if scores else {}
