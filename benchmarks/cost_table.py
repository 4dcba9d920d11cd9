"""What the cost model says, beside what was measured: `python benchmarks/cost_table.py` writes COST.md's tables.

The measured figures are those of results/search.json (`make search-results`). A 7 B model was not run: its
weights are on torch's meta device, which has shapes and no numbers, and the GPU's rates are assumptions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from main_job import write_between
from search_case import SHAPES, plant_circuit
from search_results import RESULTS
from torch import Tensor

from exporter.circuit import Circuit, Head
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.step import Step
from exporter.search.cost import (
    count_once_flops,
    count_search_bytes,
    count_search_flops,
    split_search_flops,
)
from exporter.search.memory import plan_memory

COST = Path(__file__).parent / "COST.md"
GPT2_VOCAB = 50257


def make_shape(n_layers: int, n_heads: int, d_model: int, d_mlp: int, d_vocab: int) -> CircuitModel:
    """A dense model without numbers."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    steps = []
    for layer in range(n_layers):
        square = {name: empty(d_model, d_model) for name in ("W_Q", "W_K", "W_V", "W_O")}
        heads = tuple(range(n_heads))
        steps.append(Step([Attention(Norm(None, None, eps=1e-5), square, layer=layer, heads=heads, scale=1.0)]))
        tensors = {"W_in": empty(d_model, d_mlp), "W_out": empty(d_mlp, d_model)}
        steps.append(Step([FeedForward(Norm(None, None, eps=1e-5), tensors, layer=layer, activation="silu")]))
    return CircuitModel(
        steps,
        W_E=empty(d_vocab, d_model),
        W_pos=empty(1, d_model),
        final_norm=Norm(None, None, eps=1e-5),
        max_length=1,
        W_U=empty(d_vocab, d_model),
    )


def render_table(rows: list[dict[str, object]]) -> str:
    """Rows with the same keys, which are the table's head."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def render_counts(results: dict[str, Any]) -> str:
    """What each measured case has to compute and to move."""
    rows = []
    for case in measured_cases(results):
        n, length, (dense, circuit) = case["prompts"], case["length"], make_measured(case)
        many, few = split_search_flops(dense, circuit, n, length)
        plan = plan_memory(dense, n, length, 2**34)
        weights, activations = count_search_bytes(dense, circuit, n, length, chunk=plan.chunk)
        rows.append(
            describe_case(case)
            | {
                "candidates": case["candidates"],
                "TFLOP, many rows": f"{many / 1e12:.2f}",
                "few rows": f"{few / 1e12:.2f}",
                "paid once": f"{count_once_flops(dense, n, n, length) / 1e12:.2f}",
                "TB of weights": f"{weights / 1e12:.3f}",
                "TB of activations": f"{activations / 1e12:.3f}",
            }
        )
    return render_table(rows)


def render_check(results: dict[str, Any]) -> str:
    """Seconds and memory as the model has them, and as they were measured."""
    cases = measured_cases(results)
    small = cases[0]
    rows = []
    for case in cases:
        whole = case["seconds"] * case["share_of_limit"] / small["share_of_limit"]
        timed = all("unembedding_gflops_per_s" in c for c in (case, small))  # older results lack it
        apart = price_apart(case) * small["seconds"] / price_apart(small) if timed else None
        rows.append(
            describe_case(case)
            | {
                "GFLOP/s, many rows": f"{case['gemm_gflops_per_s']:.0f}",
                "in the median": f"{case['gemm_gflops_per_s_median']:.0f}",
                "few rows": f"{case['unembedding_gflops_per_s']:.0f}" if timed else "",
                "seconds by one rate": f"{whole:.0f}",
                "by two": f"{apart:.0f}" if apart else "",
                "seconds measured": f"{case['seconds']:.1f}",
                "share of the limit": f"{case['share_of_limit']:.0%}",
                "plain search": f"{case['hooked_seconds_extrapolated']:.0f} s" if "speedup" in case else "",
                "times faster": f"{case['speedup']:.1f}" if "speedup" in case else "",
                "GiB planned": f"{case['planned_gib']:.2f}",
                "measured above the model": f"{case['search_gib']:.2f}",
                "peak of the process": f"{case['peak_rss_gib']:.2f}",
            }
        )
    tasks = [case for case in results["cases"].values() if "task" in case]
    times = ", ".join(f"{case['task']} {case['seconds']:.1f} s" for case in tasks)
    machine = results["machine"]
    return (
        f"{render_table(rows)}\n\nThe bundled checkpoint, {tasks[0]['prompts']} prompts: {times}.\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instructions']}, {results['date']}."
    )


def measured_cases(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of the cost model; the first one is what the others are predicted from."""
    cases = [case for case in results["cases"].values() if "shape" in case]
    assert all(case["as_planted"] for case in cases)
    return cases


def make_measured(case: dict[str, Any]) -> tuple[CircuitModel, Circuit]:
    """The shape and the circuit of a measured case."""
    n_layers, n_heads, d_model = SHAPES[case["shape"]]
    dense = make_shape(n_layers, n_heads, d_model, 4 * d_model, GPT2_VOCAB)
    return dense, plant_circuit(case["shape"], case["survivors"])


def describe_case(case: dict[str, Any]) -> dict[str, object]:
    return {
        "shape": case["shape"],
        "survivors": f"{case['heads']} heads, {case['mlps']} MLPs",
        "prompts": case["prompts"],
    }


def price_apart(case: dict[str, Any]) -> float:
    """Seconds of the matrix products: those with few rows at the unembedding's rate, which is memory's."""
    many, few = split_search_flops(*make_measured(case), case["prompts"], case["length"])
    return many / case["gemm_gflops_per_s"] / 1e9 + few / case["unembedding_gflops_per_s"] / 1e9


@dataclass(frozen=True)
class Gpu:
    """What is assumed of an H100 SXM: bytes; FLOPs and bytes a second that large products and copies sustain.

    Then the seconds to start a kernel, and to sum a few numbers over eight GPUs.
    """

    memory: float = 80e9
    flops: float = 50e12
    tf32_flops: float = 300e12
    bandwidth: float = 2.5e12
    launch: float = 5e-6
    reduce: float = 50e-6


LLAMA_7B = (32, 32, 4096, 3 * 11008 // 2, 32000)  # a gated MLP's three matrices count as two of 3/2 the width
PROMPTS, LENGTH = 250, 20
SURVIVING = [(16, 4), (128, 12)]  # heads and MLPs
KERNELS_A_SUBLAYER, KERNELS_A_BLOCK, KERNELS_A_KL = 10, 5, 20  # what eager PyTorch starts; a block has 4096 tokens


def spread_circuit(n_layers: int, n_heads: int, n_kept_heads: int, n_kept_mlps: int) -> Circuit:
    """Survivors spread evenly over the upper two thirds of the layers, the topmost in the last."""
    upper = range(n_layers // 3, n_layers)

    def place(index: int, of: int) -> int:
        return upper[len(upper) - 1 - index * len(upper) // of]

    heads = tuple(Head(place(i, n_kept_heads), i % n_heads) for i in range(n_kept_heads))
    return Circuit(heads=heads, mlps=tuple(place(i, n_kept_mlps) for i in range(n_kept_mlps)))


def render_large() -> str:
    """A 7 B model on one GPU and on eight, on paper."""
    gpu, dense = Gpu(), make_shape(*LLAMA_7B)
    n_layers, n_heads, *_, d_vocab = LLAMA_7B
    weights_held = 4 * sum(p.numel() for p in dense.parameters())
    rows = []
    for n_kept in SURVIVING:
        circuit = spread_circuit(n_layers, n_heads, *n_kept)
        for n_gpus in (1, 8):
            n = -(-PROMPTS // n_gpus)
            n_candidates = n_layers * (n_heads + 1)
            plan = plan_memory(dense, n, LENGTH, int(gpu.memory) - weights_held)
            once = count_once_flops(dense, PROMPTS, n, LENGTH)
            flops = count_search_flops(dense, circuit, n, LENGTH) + once
            full = sum(s.count_flops(n, LENGTH, LENGTH) for s in dense.sublayers()) + 2 * n * dense.W_U.numel()
            weights, activations = count_search_bytes(dense, circuit, n, LENGTH, chunk=plan.chunk)
            n_sublayers = 1 + (len({h.layer for h in circuit.heads}) + len(circuit.mlps)) // 2  # above, on average
            kernels = n_sublayers * KERNELS_A_SUBLAYER + -(-d_vocab // 4096) * KERNELS_A_BLOCK + KERNELS_A_KL
            moved = activations / gpu.bandwidth
            seconds = [max(flops / rate, weights / gpu.bandwidth) + moved for rate in (gpu.flops, gpu.tf32_flops)]
            rows.append(
                {
                    "survivors": f"{n_kept[0]} heads, {n_kept[1]} MLPs",
                    "GPUs": n_gpus,
                    "prompts each": n,
                    "PFLOP each": f"{flops / 1e15:.2f}",
                    "of it once": f"{once / 1e15:.2f}",
                    "times fewer than plain": f"{n_candidates * full / flops:.1f}",
                    "seconds, fp32": f"{seconds[0]:.3g}",
                    "TF32": f"{seconds[1]:.3g}",
                    "TB of weights": f"{weights / 1e12:.1f}",
                    "of activations": f"{activations / 1e12:.1f}",
                    "seconds to move both": f"{(weights + activations) / gpu.bandwidth:.1f}",
                    "to start kernels": f"{n_candidates * -(-n // plan.chunk) * kernels * gpu.launch:.1f}",
                    "to sum": f"{n_candidates * gpu.reduce * (n_gpus > 1):.2f}",
                    "GB held": f"{(weights_held + plan.bytes) / 1e9:.1f}",
                }
            )
    return render_table(rows)


def main() -> None:
    """Write both tables."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    tables = {"counts": render_counts(results), "check": render_check(results), "7 B": render_large()}
    for name, table in tables.items():
        write_between(COST, f"<!-- {name}: make search-results -->", f"<!-- end of {name} -->", table)
        print(table, end="\n\n")


if __name__ == "__main__":
    main()
