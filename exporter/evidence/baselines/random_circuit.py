"""A random circuit of the same make: as many heads, MLPs and neurons, elsewhere."""

from __future__ import annotations

from random import Random

from exporter.circuit import Circuit, Head
from exporter.network.model import CircuitModel


def draw_circuit(dense: CircuitModel, circuit: Circuit, random: Random) -> Circuit:
    """As many heads and whole MLPs, drawn from all; neurons in the same MLPs as in the circuit, which stay partial."""
    sites = [site for sublayer in dense.sublayers() for site in sublayer.sites]
    heads = [Head(site.layer, unit) for site in sites if site.kind == "heads" for unit in site.units]
    layers = [site.layer for site in sites if site.kind == "mlp" and circuit.neurons_of(site.layer) is None]
    sizes = {site.layer: len(site.units) for site in sites if site.kind == "neurons"}
    return Circuit(
        heads=tuple(random.sample(heads, len(circuit.heads))),
        mlps=tuple(random.sample(layers, len(circuit.mlps))),
        ablation=circuit.ablation,
        neurons=tuple(
            (layer, tuple(random.sample(range(sizes[layer]), len(units)))) for layer, units in circuit.neurons
        ),
    )
