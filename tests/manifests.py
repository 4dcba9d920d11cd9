"""A manifest's data, complete and made up."""

from __future__ import annotations

from typing import Any

from exporter.circuit import Circuit, Head

ACCURACY = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
FIGURES = {
    "n": 4, "dense": ACCURACY, "circuit": ACCURACY, "kl": 0.1, "agreement": 0.9, "metrics": {"kl": 0.1},
    "ece": {"dense": 0.1, "circuit": 0.2},
    "paired": {"mcnemar_p": 0.5, "difference": -0.1, "ci95": [-0.2, 0.1], "prompts_for_one_point": 900},
}  # fmt: skip
EXPORT: dict[str, Any] = {
    "logits": "last",
    "answer_ids": [],
    "labels": [],
    "template": None,
    "vocabulary": None,
    "opening": 0,
    "target": "portable",
    "precision": "fp32",
    "scales": "none",
    "weight_type": "fp32",
    "batch_dependent": False,
    "in_fp32": [],
    "processors": None,
    "served": {
        "n": 4, "accuracy": ACCURACY, "circuit_accuracy": 0.5, "agreement": 1.0, "largest_difference": 1e-6,
        "same_verdict": 1.0, "kl": 1e-9, "mates": None,
    },
}  # fmt: skip
DATA: dict[str, Any] = {
    "schema": 1,
    "task": {"name": "acronym", "parameters": {"seed": 0}, "sha256": "00"},
    "model": {"name": "m", "revision": None, "sha256": "11", "family": "gpt2", "n_layers": 2, "n_heads": 2, "d_mlp": 8},
    "circuit": Circuit(heads=(Head(0, 1),), mlps=(1,)).to_json(),
    "alpha_sweep": None,
    "size": {"dense": 10, "circuit": 5, "constants": 1, "reduction": 0.5},
    "test": FIGURES,
    "ood": {"words": FIGURES},
    "exactness": {"hooked_vs_rewritten": 1e-6, "rewritten_vs_onnx": 1e-6, "limit": 1e-4, "prompts": 4},
    "export": EXPORT,
    "onnx": {"opset": 20, "ir_version": 10, "inputs": {"input_ids": ["batch", 5]}, "outputs": {}, "nodes": 7},
    "latency": [],
    "dense_onnx_bytes": 5,
    "files": {"m.onnx": {"bytes": 3, "sha256": "22"}},
    "seconds": {"load": 1.5},
    "versions": {"python": "3.11"},
    "notes": [],
    "memory": [],
    "command": None,
    "prompts": [],
    "attention": None,
    "controls": None,
    "targets": [],
    "graphs": {},
    "guard": None,
}
