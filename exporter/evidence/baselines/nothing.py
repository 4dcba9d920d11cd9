"""The circuit that keeps no component: what replacements alone give."""

from __future__ import annotations

from random import Random

from exporter.circuit import Circuit
from exporter.network.model import CircuitModel


def keep_nothing(dense: CircuitModel, circuit: Circuit, random: Random) -> Circuit:
    """No head, no MLP, no neuron."""
    del dense, random
    return Circuit(heads=(), mlps=(), ablation=circuit.ablation)
