"""A circuit and the record of its search, as plain data without tensors."""

from exporter.circuit.ablation import Ablation, Align, By, Kind
from exporter.circuit.circuit import Circuit, CircuitFile, load_circuit, read_circuit_file
from exporter.circuit.components import MLP, Component, Head, Neuron, parse_component
from exporter.circuit.graph_writer import graph_to_json
from exporter.circuit.hooks import list_hooks
from exporter.circuit.latency import LatencyTable, TimedNetwork
from exporter.circuit.node_graph import GraphShape
from exporter.circuit.published import PublishedCircuit, load_published
from exporter.circuit.record import Decision, Learning, SearchRecord, SizeStep, decision_from_json, decision_to_json

__all__ = [
    "MLP",
    "Ablation",
    "Align",
    "By",
    "Circuit",
    "CircuitFile",
    "Component",
    "Decision",
    "GraphShape",
    "Head",
    "Kind",
    "LatencyTable",
    "Learning",
    "Neuron",
    "PublishedCircuit",
    "SearchRecord",
    "SizeStep",
    "TimedNetwork",
    "decision_from_json",
    "decision_to_json",
    "graph_to_json",
    "list_hooks",
    "load_circuit",
    "load_published",
    "parse_component",
    "read_circuit_file",
]
