"""Find, rebuild, export and measure the circuit of one task in a language model.

The main job's stages, in order: `load_model`, `load_task`, `find_circuit`, `rewrite_model`,
`export_onnx`, `verify_export`, `evaluate_circuit`, `compare_latency`; `run_job` does them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.circuit import MLP, Ablation, Circuit, Decision, Head, Neuron, SearchRecord
    from exporter.errors import ExportCircuitError
    from exporter.evidence.baselines import compare_baselines
    from exporter.evidence.evaluate import evaluate_circuit
    from exporter.evidence.latency import compare_latency
    from exporter.graph.export import export_onnx
    from exporter.graph.options import GraphOptions
    from exporter.job.options import Job
    from exporter.job.run import run_job
    from exporter.loading.load import LanguageModel, load_model
    from exporter.network.model import CircuitModel
    from exporter.outputs.manifest import Manifest
    from exporter.rewrite.surgery import Surgery, rewrite_model
    from exporter.search.find import find_circuit, search_circuit, search_surgery
    from exporter.search.rules import Budget
    from exporter.tasks import load_task
    from exporter.tasks.dataset import Dataset
    from exporter.verify.exactness import verify_export

_HOME = {
    "MLP": "circuit",
    "Ablation": "circuit",
    "Budget": "search.rules",
    "Circuit": "circuit",
    "CircuitModel": "network.model",
    "Dataset": "tasks.dataset",
    "Decision": "circuit",
    "ExportCircuitError": "errors",
    "GraphOptions": "graph.options",
    "Head": "circuit",
    "Job": "job.options",
    "LanguageModel": "loading.load",
    "Manifest": "outputs.manifest",
    "Neuron": "circuit",
    "SearchRecord": "circuit",
    "Surgery": "rewrite.surgery",
    "compare_baselines": "evidence.baselines",
    "compare_latency": "evidence.latency",
    "evaluate_circuit": "evidence.evaluate",
    "export_onnx": "graph.export",
    "find_circuit": "search.find",
    "load_model": "loading.load",
    "load_task": "tasks",
    "rewrite_model": "rewrite.surgery",
    "run_job": "job.run",
    "search_circuit": "search.find",
    "search_surgery": "search.find",
    "verify_export": "verify.exactness",
}

__all__ = [
    "MLP",
    "Ablation",
    "Budget",
    "Circuit",
    "CircuitModel",
    "Dataset",
    "Decision",
    "ExportCircuitError",
    "GraphOptions",
    "Head",
    "Job",
    "LanguageModel",
    "Manifest",
    "Neuron",
    "SearchRecord",
    "Surgery",
    "compare_baselines",
    "compare_latency",
    "evaluate_circuit",
    "export_onnx",
    "find_circuit",
    "load_model",
    "load_task",
    "rewrite_model",
    "run_job",
    "search_circuit",
    "search_surgery",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that `import exporter` stays light and Ctrl-C stays clean."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporter' has no attribute {name!r}")
    return getattr(importlib.import_module(f"exporter.{_HOME[name]}"), name)
