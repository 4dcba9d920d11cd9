"""Latency of ONNX files against each other, in one process, the way PITFALLS of benchmarking ask for.

Models take turns in blocks of calls, each after a pause and a few warm-up calls: call by call, the
spinning threads of the other session would be what is measured. Medians, and the ratio with a
bootstrap interval over blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from exporter.runtime import open_session, run_logits


@dataclass(frozen=True)
class Latency:
    """Median seconds of one call of `dense` and of `circuit`, and dense / circuit with its 95 % interval."""

    batch: int
    threads: int
    dense: float
    circuit: float
    speedup: float
    speedup_ci95: tuple[float, float]


def compare_latency(
    dense: str | Path,
    circuit: str | Path,
    input_ids: torch.Tensor,
    *,
    blocks: int = 7,
    block_seconds: float = 0.15,
    threads: int | None = None,
) -> Latency:
    """Time two ONNX files on the same (batch, pos) prompts, on the CPU, in alternating blocks.

    A block is a pause, a warm-up call, and calls for `block_seconds`: at least 3, at most 20.
    """
    threads = threads or len(os.sched_getaffinity(0))
    sessions = {name: open_session(path, threads=threads) for name, path in (("dense", dense), ("circuit", circuit))}
    ids = input_ids.numpy()
    times: Mapping[str, list[list[float]]] = {name: [] for name in sessions}
    for _ in range(blocks):
        for name, session in sessions.items():
            times[name].append(_time_block(session, ids, block_seconds))
    by_block = {name: [float(np.median(block)) for block in rows] for name, rows in times.items()}  # seconds
    low, high = _bootstrap_ratio(by_block["dense"], by_block["circuit"])
    medians = {name: float(np.median(np.concatenate(rows))) for name, rows in times.items()}
    ratio = medians["dense"] / medians["circuit"]
    return Latency(ids.shape[0], threads, medians["dense"], medians["circuit"], ratio, (low, high))


def _time_block(session: Any, input_ids: np.ndarray, seconds: float) -> list[float]:
    """Seconds of each call in one block."""
    time.sleep(0.02)  # lets the other session's threads go to sleep
    run_logits(session, input_ids)
    block: list[float] = []
    while len(block) < 3 or (len(block) < 20 and sum(block) < seconds):
        start = time.perf_counter()
        run_logits(session, input_ids)
        block.append(time.perf_counter() - start)
    return block


def _bootstrap_ratio(a: list[float], b: list[float]) -> tuple[float, float]:
    """95 % interval of median(a) / median(b), the blocks' medians resampled in pairs."""

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.median(x, axis=axis) / np.median(y, axis=axis))

    found = bootstrap((a, b), ratio, paired=True, method="percentile", n_resamples=2000, rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
