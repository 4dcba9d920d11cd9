"""The sizes of a network, as circuits and graph files name its components."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.circuit import GraphShape
from exporter.network.step import Step


def read_shape(steps: Sequence[Step], *, d_model: int) -> GraphShape:
    """Layers, heads and hidden units of a layer at most, and whether sublayers read the same residual."""
    sites = [site for step in steps for sublayer in step.sublayers for site in sublayer.sites]
    counts = {kind: max((len(s.units) for s in sites if s.kind == kind), default=0) for kind in ("heads", "neurons")}
    return GraphShape(
        n_layers=len({site.layer for site in sites}),
        n_heads=counts["heads"],
        d_model=d_model,
        d_mlp=counts["neurons"],
        parallel_attn_mlp=any(len(step.sublayers) > 1 for step in steps),
    )
