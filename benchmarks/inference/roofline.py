"""What the machine can do: the rate of its matrix products, by precision, and the bandwidth of its memory.

The rate is the best over shapes that occur in the graphs and over ONNX Runtime and PyTorch, each a median of many
calls, as the contestants' times are. A contestant cannot be faster than min(rate, bandwidth x FLOPs per byte) allows
(Williams, Waterman and Patterson, CACM 2009). Bandwidth is that of an array as large as what the contestant
reads: small weights stay in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter.runtime.session import import_onnxruntime
from inference.matrix import ON_CUDA
from inference.work import Work

Call = Callable[[], Any]
ROWS = (32, 352, 1408)  # 32 prompts at the answer position; 32 and 128 prompts of 11 tokens
MATRICES = ((768, 3072), (3072, 768), (768, 768))
ARRAYS = tuple(2**exponent for exponent in (20, 22, 24, 25, 26, 28, 29))  # bytes
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FLAGS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}


@dataclass(frozen=True, eq=False)
class GemmRate:
    """FLOPs a second of the best product: median and best call, what it was, and the call itself to repeat."""

    precision: str
    rate: float
    peak: float
    engine: str
    shape: tuple[int, int, int]
    call: Call

    @property
    def flops(self) -> int:
        """FLOPs of one call."""
        rows, d_in, d_out = self.shape
        return 2 * rows * d_in * d_out

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {
            "precision": self.precision,
            "gflops_per_s": round(self.rate / 1e9, 1),
            "best_call_gflops_per_s": round(self.peak / 1e9, 1),
            "engine": self.engine,
            "shape": list(self.shape),
        }


def list_precisions() -> list[str]:
    """Those that the processor has instructions for."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return ["fp32", "int8", *(name for name, needed in _FLAGS.items() if flags.intersection(needed))]


def measure_gemm(
    precision: str, threads: int, *, rows: tuple[int, ...] = ROWS, matrices: tuple[tuple[int, int], ...] = MATRICES
) -> GemmRate:
    """The best rate over all shapes and engines, with so many threads, or ON_CUDA."""
    torch.set_num_threads(threads or 1)
    best: GemmRate | None = None
    for n_rows in rows:
        for d_in, d_out in matrices:
            shape = (n_rows, d_in, d_out)
            for engine, call in _make_products(precision, shape, threads):
                times = time_calls(call)
                flops = 2 * n_rows * d_in * d_out
                found = GemmRate(precision, flops / float(np.median(times)), flops / min(times), engine, shape, call)
                if best is None or found.rate > best.rate:
                    best = found
    assert best is not None
    return best


def _make_products(precision: str, shape: tuple[int, int, int], threads: int) -> Iterator[tuple[str, Call]]:
    """The same product in each engine that computes it."""
    rows, d_in, d_out = shape
    a, b = torch.randn(rows, d_in), torch.randn(d_in, d_out)
    if threads == ON_CUDA:
        on_device = [x.to("cuda", _DTYPES[precision]) for x in (a, b)]
        yield "torch", lambda: _synchronize(torch.mm(*on_device))
    elif precision == "fp32":
        yield "torch", lambda: torch.mm(a, b)
        yield "onnxruntime", _make_session_call("MatMul", a.numpy(), b.numpy(), threads)
    elif precision == "int8":
        signed = torch.randint(-127, 128, (d_in, d_out), dtype=torch.int8)
        left = torch.randint(-127, 128, (rows, d_in), dtype=torch.int8)
        yield "torch", lambda: torch._int_mm(left, signed)
        unsigned = np.random.default_rng(0).integers(0, 256, (rows, d_in), dtype=np.uint8)
        yield "onnxruntime", _make_session_call("MatMulInteger", unsigned, signed.numpy(), threads)
    else:
        half_a, half_b = a.to(_DTYPES[precision]), b.to(_DTYPES[precision])
        yield "torch", lambda: torch.mm(half_a, half_b)


def _make_session_call(op: str, a: np.ndarray, b: np.ndarray, threads: int) -> Call:
    """ONNX Runtime's kernel alone; the right-hand side is a weight, which it packs when it loads the model."""
    kind = helper.np_dtype_to_tensor_dtype(a.dtype)
    out = TensorProto.FLOAT if op == "MatMul" else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(op, ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", kind, a.shape)],
        [helper.make_tensor_value_info("c", out, (a.shape[0], b.shape[1]))],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def measure_bandwidth(threads: int, *, sizes: tuple[int, ...] = ARRAYS) -> dict[int, float]:
    """Bytes a second that can be read from an array, by its size in bytes: the better of a sum and a matrix-vector."""
    torch.set_num_threads(threads or 1)
    found = {}
    for size in sizes:
        device = "cuda" if threads == ON_CUDA else "cpu"
        matrix, vector = torch.ones(size // 4 // 1024, 1024, device=device), torch.ones(1024, device=device)
        calls = (lambda m=matrix: _synchronize(m.sum()), lambda m=matrix, v=vector: _synchronize(m @ v))
        times = [float(np.median(time_calls(call))) for call in calls]
        found[size] = size / min(times)
    return found


def _synchronize(result: torch.Tensor) -> torch.Tensor:
    """A result that is there: CUDA only queues what it is asked for."""
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def pick_bandwidth(bandwidth: dict[int, float], n_bytes: int) -> float:
    """The bandwidth of the smallest measured array that is as large as `n_bytes`, else of the largest."""
    return bandwidth[min((size for size in bandwidth if size >= n_bytes), default=max(bandwidth))]


def shares(work: Work, seconds: float, gemm_rate: float, bandwidth: float) -> dict[str, float]:
    """How near a contestant came: to the rate of matrix products, and to what bandwidth leaves of it."""
    rate = work.flops / seconds
    attainable = min(gemm_rate, bandwidth * work.intensity)
    return {"share_of_gemm": round(rate / gemm_rate, 4), "share_of_roofline": round(rate / attainable, 4)}


def time_calls(call: Call, *, seconds: float = 0.15, least: int = 5) -> list[float]:
    """Seconds of each call, after two that are not counted."""
    call(), call()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
