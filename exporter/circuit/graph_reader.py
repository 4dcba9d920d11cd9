"""Read a graph file of EAP-IG, the MIB benchmark or circuitkit: which nodes it keeps, as the fields of a circuit file.

Their circuits may be finer than ours: an edge can be cut, or a node kept in some dimensions only. What of that is lost
when nodes are kept whole is told in `NodeGraph.losses`; who needs the same network refuses a graph that has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.checks import shorten
from exporter.circuit.components import Component, Head, parse_component
from exporter.circuit.node_graph import INPUT, LOGITS, OWN_KEY, GraphShape
from exporter.errors import InputError


@dataclass(frozen=True)
class NodeGraph:
    """What a graph file says of whole nodes.

    circuit: the fields of a circuit file. scores: by component, as they stand in the file, without those that are NaN
    (which these files write for a node without a score). losses: what a circuit of whole nodes does not keep, in words.
    """

    shape: GraphShape
    circuit: Mapping[str, Any]
    scores: Mapping[Component, float]
    losses: tuple[str, ...]


def is_graph(data: Any) -> bool:
    """Whether a JSON value is a graph file rather than a circuit file or a manifest."""
    return isinstance(data, Mapping) and {"cfg", "nodes", "edges"} <= set(data)


def read_graph(data: Mapping[str, Any]) -> NodeGraph:
    """Read the JSON value of a graph file. Raises InputError: nodes or edges that do not fit `cfg`, or wrong values."""
    shape = GraphShape.from_json(data["cfg"])
    nodes = _take_entries(data["nodes"], "nodes", shape.n_nodes, optional=LOGITS)
    edges = _take_entries(data["edges"], "edges", shape.n_edges)
    if unknown := nodes.keys() - set(shape.nodes()):
        raise InputError(f"nodes has {shorten(min(unknown))}, which a model of this cfg lacks; name them a0.h0, m0")
    kept = {name for name, node in nodes.items() if _take_flag(node, name)}
    components = {name: parse_component(name) for name in nodes if name != INPUT}
    own = _take_own(data.get(OWN_KEY, {}))
    heads = [[c.layer, c.index] for name, c in components.items() if name in kept and isinstance(c, Head)]
    mlps = [c.layer for name, c in components.items() if name in kept and not isinstance(c, Head)]
    _check_neurons(own.get("neurons", {}), mlps)
    whole = [layer for layer in mlps if str(layer) not in own.get("neurons", {})]
    scores = {c: score for name, c in components.items() if (score := _take_score(nodes[name], name)) is not None}
    return NodeGraph(
        shape=shape,
        circuit={"heads": heads, "mlps": whole, **own},
        scores=scores,
        losses=tuple(_find_losses(shape, nodes, edges, kept)),
    )


def _take_entries(value: Any, name: str, count: int, *, optional: str = "") -> dict[str, Mapping[str, Any]]:
    """The nodes or edges of a file by name, all of them. The count bounds what a wrong `cfg` can ask for."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be an object of names, not {type(value).__name__}")
    entries = {key: entry for key, entry in value.items() if key != optional}
    if len(entries) != count:
        raise InputError(f"{name} has {len(entries):,} entries, and cfg makes it {count:,}; list them all")
    if wrong := [key for key, entry in entries.items() if not isinstance(entry, Mapping)]:
        raise InputError(f"{name} has {shorten(entries[wrong[0]])} at {shorten(wrong[0])}; give {{'in_graph': true}}")
    return entries


def _take_flag(entry: Mapping[str, Any], name: str) -> bool:
    if not isinstance(flag := entry.get("in_graph"), bool):
        raise InputError(f"in_graph of {name} must be true or false, not {shorten(flag)}")
    return flag


def _take_score(entry: Mapping[str, Any], name: str) -> float | None:
    """A node's score; None where it has none, which their writer says by NaN."""
    score = entry.get("score")
    if score is None or (isinstance(score, float) and math.isnan(score)):
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError(f"the score of {name} must be a finite number, not {shorten(score)}")
    return float(score)


def _take_dimensions(entry: Mapping[str, Any], name: str) -> list[Any]:
    """Which dimensions of its output a node keeps; none are listed where it keeps all."""
    if not isinstance(dimensions := entry.get("neurons", []), list):
        raise InputError(f"neurons of {name} must be a list, not {shorten(dimensions)}")
    return dimensions


def _take_own(value: Any) -> dict[str, Any]:
    """What we wrote beside the graph; its values are checked as those of a circuit file are."""
    if not isinstance(value, Mapping) or value.keys() - {"ablation", "mean", "align", "neurons"}:
        raise InputError(f"{OWN_KEY} must be an object of ablation, mean, align and neurons, not {shorten(value)}")
    if not isinstance(value.get("neurons", {}), Mapping):
        raise InputError(f"neurons of {OWN_KEY} must be an object of layers, not {shorten(value['neurons'])}")
    return dict(value)


def _check_neurons(neurons: Mapping[str, Any], mlps: list[int]) -> None:
    """Raise InputError where nodes and hidden units disagree: a graph whose nodes were edited."""
    for layer, units in neurons.items():
        if bool(units) != (layer in {str(kept) for kept in mlps}):
            was = "keeps" if units else "keeps no"
            raise InputError(f"{OWN_KEY} {was} hidden units of m{layer}, and its node says otherwise; mend one of them")


def _find_losses(
    shape: GraphShape, nodes: Mapping[str, Mapping[str, Any]], edges: Mapping[str, Mapping[str, Any]], kept: set[str]
) -> list[str]:
    """What of the graph is lost when its nodes are kept whole, with all edges between them."""
    losses = []
    if kept and INPUT not in kept:
        losses.append("the graph removes the token embedding, which a circuit always keeps")
    if parts := [name for name in kept if not all(_take_dimensions(nodes[name], name))]:
        losses.append(f"the graph keeps only some dimensions of {len(parts)} nodes, such as {min(parts)}")
    readers, cut, between = kept | {LOGITS}, 0, 0
    for name, source, reader in shape.edges():
        if name not in edges:
            raise InputError(f"edges has no {name}, which a model of this cfg has")
        stays = _take_flag(edges[name], name)
        if source in kept and reader in readers:
            between, cut = between + 1, cut + (not stays)
    if cut:
        losses.append(f"the graph cuts {cut:,} of the {between:,} edges between the nodes that it keeps")
    return losses
