"""A circuit and the record of its search, as plain data without tensors."""

from exporter.circuit.ablation import Ablation, Align, By, Kind
from exporter.circuit.circuit import Circuit, load_circuit
from exporter.circuit.components import MLP, Component, Head, Neuron, parse_component
from exporter.circuit.latency import LatencyTable, TimedNetwork
from exporter.circuit.record import Decision, Learning, SearchRecord, SizeStep, decision_from_json, decision_to_json

__all__ = [
    "MLP",
    "Ablation",
    "Align",
    "By",
    "Circuit",
    "Component",
    "Decision",
    "Head",
    "Kind",
    "LatencyTable",
    "Learning",
    "Neuron",
    "SearchRecord",
    "SizeStep",
    "TimedNetwork",
    "decision_from_json",
    "decision_to_json",
    "load_circuit",
    "parse_component",
]
