"""Find, rebuild, export and measure the circuit of one task in a language model.

The main job's stages, in order: `load_model`, `load_task`, `find_circuit`, `rewrite_model`,
`export_onnx`, `verify_export`, `evaluate_circuit`, `compare_latency`; `run_job` does them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.circuit import MLP, Circuit, Decision, Head
    from exporter.circuit_model import CircuitModel
    from exporter.dataset import Dataset
    from exporter.errors import ExportCircuitError
    from exporter.evaluate import evaluate_circuit
    from exporter.graph_options import GraphOptions
    from exporter.job import Job
    from exporter.loading import LanguageModel, load_model
    from exporter.manifest import Manifest
    from exporter.measure import compare_latency
    from exporter.onnx_export import export_onnx
    from exporter.pipeline import run_job
    from exporter.rewrite import rewrite_model
    from exporter.search.engine import find_circuit
    from exporter.tasks import load_task
    from exporter.verify import verify_export

_HOME = {
    "MLP": "circuit",
    "Circuit": "circuit",
    "CircuitModel": "circuit_model",
    "Dataset": "dataset",
    "Decision": "circuit",
    "ExportCircuitError": "errors",
    "GraphOptions": "graph_options",
    "Head": "circuit",
    "Job": "job",
    "LanguageModel": "loading",
    "Manifest": "manifest",
    "compare_latency": "measure",
    "evaluate_circuit": "evaluate",
    "export_onnx": "onnx_export",
    "find_circuit": "search.engine",
    "load_model": "loading",
    "load_task": "tasks",
    "rewrite_model": "rewrite",
    "run_job": "pipeline",
    "verify_export": "verify",
}

__all__ = [
    "MLP",
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
    "compare_latency",
    "evaluate_circuit",
    "export_onnx",
    "find_circuit",
    "load_model",
    "load_task",
    "rewrite_model",
    "run_job",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that `import exporter` stays light and Ctrl-C stays clean."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporter' has no attribute {name!r}")
    return getattr(importlib.import_module(f"exporter.{_HOME[name]}"), name)
