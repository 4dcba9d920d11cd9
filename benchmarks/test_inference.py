"""Latency in ONNX Runtime: the dense model against a circuit, by batch. Each run also asserts the answers.

GPT-2 Small's shape with random weights; the circuit is two heads (7.10, 9.1) and three MLPs (8, 9, 10), given
by hand; prompts of 11 tokens; all logits. `make bench`; CPU, one thread for each core.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import Circuit, Head
from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.families import FAMILIES
from exporter.onnx_export import export_onnx
from exporter.rewrite import rewrite_model
from exporter.runtime import open_session, run_logits

LENGTH, MOST = 11, 32
CIRCUIT = Circuit(heads=(Head(7, 10), Head(9, 1)), mlps=(8, 9, 10))


@pytest.fixture(scope="module")
def prompts() -> torch.Tensor:
    return torch.randint(50257, (MOST, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def contestants(prompts: torch.Tensor) -> dict[str, CircuitModel]:
    torch.manual_seed(0)
    dense = FAMILIES["gpt2"].build_dense(GPT2LMHeadModel(GPT2Config()).requires_grad_(False))
    patching = Dataset(prompts, prompts[:, 0].contiguous())
    return {"dense": dense, "circuit": rewrite_model(dense, CIRCUIT, patching)}


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("contestant", ["dense", "circuit"])
def test_latency(
    benchmark: Any,
    contestant: str,
    batch: int,
    contestants: dict[str, CircuitModel],
    prompts: torch.Tensor,
    tmp_path: Path,
) -> None:
    model, ids = contestants[contestant], prompts[:batch]
    description = export_onnx(model, tmp_path / "m.onnx")
    threads = len(os.sched_getaffinity(0))
    session = open_session(tmp_path / "m.onnx", threads=threads)
    logits = benchmark.pedantic(run_logits, (session, ids.numpy()), rounds=15, warmup_rounds=3)
    np.testing.assert_allclose(logits, model(ids), rtol=1e-3, atol=1e-4)
    times = sorted(benchmark.stats.stats.data)
    benchmark.extra_info |= {
        "threads": threads,
        "nodes": description.nodes,
        "bytes": (tmp_path / "m.onnx").stat().st_size,
        "parameters": model.count_parameters(),
        "p50_ms": round(1e3 * float(np.quantile(times, 0.5)), 3),
        "p95_ms": round(1e3 * float(np.quantile(times, 0.95)), 3),
    }
