"""Inference, measured: the machine, each contestant alone and against the others, and each file's footprint.

`make bench`; `BENCH_ARGS="--size smoke"` for seconds. `inference/matrix.py` says what meets what. pytest-benchmark
times each contestant alone; ratios are from alternating blocks (extra_info), which the machine's changes of pace
disturb less. Each test also asserts the answers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inference.matrix import ALL_THREADS, CONTESTANTS, ON_CUDA, Comparison, Provider
from inference.roofline import list_precisions
from inference.runners import UnavailableError, why_no_cuda
from inference.workbench import Workbench

SMALL_PRODUCTS = {"rows": (32,), "matrices": ((64, 64),)}


def find_threads(workbench: Workbench, where: str) -> int:
    """The threads that a ceiling is measured with; skips where there is no CUDA."""
    if where == "cuda" and (reason := why_no_cuda()):
        pytest.skip(reason)
    return {"all-threads": workbench.threads(ALL_THREADS), "one-thread": 1, "cuda": ON_CUDA}[where]


@pytest.mark.parametrize("where", ["all-threads", "one-thread", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16", "fp16"])
def test_gemm(benchmark: Any, workbench: Workbench, precision: str, where: str, smoke: bool) -> None:
    threads = find_threads(workbench, where)
    if where != "cuda" and precision not in list_precisions():
        pytest.skip(f"this processor has no instructions for {precision}")
    if where == "cuda" and precision == "int8":
        pytest.skip("int8 is for the CPU")
    rate = workbench.gemm_rate(precision, threads, **(SMALL_PRODUCTS if smoke else {}))
    benchmark.pedantic(rate.call, rounds=20, warmup_rounds=3)
    benchmark.extra_info |= {"kind": "gemm", "threads": threads} | rate.describe()


@pytest.mark.parametrize("where", ["all-threads", "one-thread", "cuda"])
def test_bandwidth(benchmark: Any, workbench: Workbench, where: str, smoke: bool) -> None:
    threads = find_threads(workbench, where)
    sizes = {"sizes": (2**20, 2**22)} if smoke else {}
    found = benchmark.pedantic(workbench.read_bandwidth, (threads,), sizes, rounds=1)
    assert all(rate > 0 for rate in found.values())
    benchmark.extra_info |= {
        "kind": "bandwidth",
        "threads": threads,
        "gb_per_s": {str(size): round(rate / 1e9, 2) for size, rate in found.items()},
    }


def test_latency(benchmark: Any, workbench: Workbench, comparison: Comparison, contestant: str) -> None:
    case, who = workbench.case(comparison.case), CONTESTANTS[comparison.provider][contestant]
    if comparison.provider == "cuda" and (reason := why_no_cuda()):
        pytest.skip(reason)
    race = workbench.compete(comparison)
    if isinstance(error := race.absent.get(contestant), UnavailableError):
        pytest.skip(str(error))
    if error is not None:
        raise error
    figures, call, runner = race.figures[contestant], race.calls[contestant], race.runners[contestant]
    rounds = max(3, min(30, round(500 / figures["p50_ms"])))
    result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
    answers = workbench.check(case, who, runner.last_logits(result))
    benchmark.extra_info |= {
        "kind": "latency",
        "case": case.name,
        "contestant": contestant,
        "batch": comparison.batch,
        "threads": ON_CUDA if comparison.provider == "cuda" else workbench.threads(comparison.threads),
        "provider": comparison.provider,
        "others_share": race.others,
        "describes": case.describe(),
    }
    if comparison.provider == "cuda" and not who.in_onnx:
        figures = figures | {"torch_max_memory_bytes": torch.cuda.max_memory_allocated()}
    benchmark.extra_info |= answers | figures
    if not answers["near"]:
        pytest.xfail(f"{who.precision} loses the answers of {case.name}: {answers['agreement']:.0%} are the same")


def test_footprint(benchmark: Any, workbench: Workbench, filed: tuple[str, str, Provider], largest: int) -> None:
    name, contestant, provider = filed
    if provider == "cuda" and (reason := why_no_cuda()):
        pytest.skip(reason)
    case, who = workbench.case(name), CONTESTANTS[provider][contestant]
    try:
        path = workbench.file(case, who)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert path is not None
    found = benchmark.pedantic(
        workbench.measure_footprint, (case, who), {"batch": largest, "provider": provider}, rounds=1
    )
    assert found["peak_bytes_many"] >= found["peak_bytes_one"] > 0
    benchmark.extra_info |= {"kind": "footprint", "case": name, "contestant": contestant, "provider": provider} | found
