"""One search, timed in a process of its own: `python benchmarks/search_case.py --shape small --survivors few`.

The model is random (GPT-2's initialisation, the shape of GPT-2 Small, Medium or Large), with the output
weights of all but a few heads and MLPs scaled down, so that these few survive and the rest goes, as in
a trained model.
Prints one JSON line: seconds, the circuit's size, peak memory, the FLOPs that no algorithm of this kind
avoids (`exporter.search.cost`), the rate of this machine's matrix products in the same run, and the share of
it that the search reached. With `--hooked N`, N candidates of every third layer are also evaluated by
plain hooked forwards, which must give the same KL; the whole plain search is extrapolated from their median.
`--task NAME` searches the bundled checkpoint for a task instead, as the main job does.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import MLP, Ablation, Circuit, Decision, Head
from exporter.loading.load import LanguageModel, load_model
from exporter.metrics.divergence import kl_divergence
from exporter.rewrite.surgery import Surgery
from exporter.search.cost import count_once_flops, count_search_flops
from exporter.search.find import search_circuit
from exporter.search.memory import plan_memory
from exporter.search.thresholds import find_threshold
from exporter.tasks import TASKS, load_task, name_variant
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import ablated, record_replacements

SHAPES = {  # layers, heads, width
    "bundled": (6, 8, 256),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
}
SURVIVORS = {  # how many heads and MLPs keep their weights, in the upper two thirds of the layers
    "few": (5, 4),
    "all-mlps": (12, None),
}
WEAK, STRONG_MLP = 0.003, 0.3  # a random MLP says more than a random head: this makes them equals
ALPHA = 0.0003


def plant_circuit(shape: str, survivors: str) -> Circuit:
    """The components whose weights are not scaled down."""
    n_layers, n_heads, _ = SHAPES[shape]
    n_strong_heads, n_strong_mlps = SURVIVORS[survivors]
    upper = range(n_layers // 3, n_layers)
    heads = [Head(upper[(3 * i + 2) % len(upper)], (5 * i + 1) % n_heads) for i in range(n_strong_heads)]
    mlps = range(n_layers) if n_strong_mlps is None else [upper[-1 - 2 * i] for i in range(n_strong_mlps)]
    return Circuit(heads=tuple(heads), mlps=tuple(mlps))


def make_case(shape: str, survivors: str) -> tuple[LanguageModel, Circuit]:
    """The model, and the circuit of what was not scaled down."""
    n_layers, n_heads, d_model = SHAPES[shape]
    planted = plant_circuit(shape, survivors)
    torch.manual_seed(0)
    with torch.no_grad():
        hf = GPT2LMHeadModel(GPT2Config(n_layer=n_layers, n_head=n_heads, n_embd=d_model)).eval().requires_grad_(False)
        d_head = d_model // n_heads
        for layer, block in enumerate(hf.transformer.h):
            block.mlp.c_proj.weight *= STRONG_MLP if layer in planted.mlps else WEAK
            for index in range(n_heads):
                if not planted.keeps(Head(layer, index)):
                    block.attn.c_proj.weight[index * d_head : (index + 1) * d_head] *= WEAK
    model = LanguageModel(name=shape, revision=None, sha256="", family="gpt2", hf=hf, tokenizer=None)
    return model, planted


def make_prompts(n: int, length: int, seed: int) -> Dataset:
    ids = torch.randint(50257, (n, length), generator=torch.Generator().manual_seed(seed))
    return Dataset(ids, ids[:, 0].contiguous())


def measure_gemm_rates(rows: int, matrix: torch.Tensor, *, seconds: float = 1.0) -> tuple[float, float]:
    """FLOPs a second of some rows times a float32 matrix: the best and the median of a second's worth."""
    a = torch.randn(rows, len(matrix))
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, matrix)
        times.append(time.perf_counter() - start)
    flops = 2 * rows * matrix.numel()
    return flops / min(times), flops / median(times)


def time_hooked(
    model: LanguageModel, trace: Sequence[Decision], patching: Dataset, selection: Dataset, n: int
) -> tuple[list[float], float]:
    """Seconds of each plain hooked evaluation of a sample, and how far their KL is from the trace's at most."""
    replacements = record_replacements(model, patching, ablation=Ablation())
    n_layers, n_heads = model.hf.config.n_layer, model.hf.config.n_head
    everything = [Head(layer, i) for layer in range(n_layers) for i in range(n_heads)]

    @torch.inference_mode()
    def compute_logits(removed: set[Any]) -> torch.Tensor:
        kept = Circuit(
            heads=tuple(h for h in everything if h not in removed),
            mlps=tuple(layer for layer in range(n_layers) if MLP(layer) not in removed),
        )
        with ablated(model, Surgery(kept, replacements)):
            logits: torch.Tensor = model.hf(selection.input_ids, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1]

    dense = compute_logits(set())
    sampled = [i for i, step in enumerate(trace) if step.component.layer % 3 == 0]
    sampled = sampled[:: max(1, len(sampled) // n)][:n]
    times, worst = [], 0.0
    for index in sampled:
        step = trace[index]
        removed = {s.component for s in trace[:index] if s.removed} | {step.component}
        start = time.perf_counter()
        pruned = compute_logits(removed)
        times.append(time.perf_counter() - start)
        kl = float(kl_divergence(dense, pruned).mean())
        worst = max(worst, abs(kl - step.kl_without))
    return times, worst


def peak_rss() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(shape: str, survivors: str, n_prompts: int, length: int, hooked: int) -> dict[str, Any]:
    """Everything about one case."""
    model, expected = make_case(shape, survivors)
    patching, selection = make_prompts(n_prompts, length, 1), make_prompts(n_prompts, length, 2)
    d_model = SHAPES[shape][2]
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    mlp = torch.randn(d_model, 4 * d_model)
    rates = [measure_gemm_rates(n_prompts * length, mlp)]
    answer_rate, _ = measure_gemm_rates(n_prompts, model.dense.W_U.T)
    rss_before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    circuit, record = search_circuit(model, patching, selection, alpha=ALPHA)
    seconds = time.perf_counter() - start
    peak = peak_rss()
    rates.append(measure_gemm_rates(n_prompts * length, mlp))
    rate = max(best for best, _ in rates)
    flops = count_search_flops(model.dense, circuit, n_prompts, length)
    once = count_once_flops(model.dense, n_prompts, n_prompts, length)
    found = {
        "shape": shape,
        "survivors": survivors,
        "prompts": n_prompts,
        "length": length,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        "candidates": len(record.trace),
        "heads": len(circuit.heads),
        "mlps": len(circuit.mlps),
        "as_planted": (circuit.heads, circuit.mlps) == (expected.heads, expected.mlps),
        "weights_gib": round(weights / 2**30, 2),
        "peak_rss_gib": round(peak / 2**30, 2),
        "search_gib": round((peak - rss_before) / 2**30, 2),
        "planned_gib": round(plan_memory(model.dense, n_prompts, length, None).bytes / 2**30, 2),
        "tera_flops": round(flops / 1e12, 3),
        "tera_flops_once": round(once / 1e12, 3),
        "gemm_gflops_per_s": round(rate / 1e9, 1),
        "gemm_gflops_per_s_median": round(median(middle for _, middle in rates) / 1e9, 1),
        "unembedding_gflops_per_s": round(answer_rate / 1e9, 1),
        "share_of_limit": round(flops / rate / seconds, 3),
    }
    if hooked:
        times, worst = time_hooked(model, record.trace, patching, selection, hooked)
        whole = median(times) * len(record.trace)
        found |= {
            "hooked_sample": len(times),
            "hooked_seconds_each": round(median(times), 3),
            "hooked_seconds_least_and_most": [round(min(times), 3), round(max(times), 3)],
            "hooked_seconds_extrapolated": round(whole, 1),
            "largest_kl_difference": worst,
            "speedup": round(whole / seconds, 2),
        }
    return found


def run_task(task: str) -> dict[str, Any]:
    """The search of one main job: the bundled checkpoint, the task's own threshold, its default sets."""
    model = load_model("bundled")
    data = load_task(task, model.tokenizer)
    alpha = find_threshold(name_variant(data), file_sha256=None, model=model.name, model_sha256=model.sha256).alpha
    start = time.perf_counter()
    circuit, record = search_circuit(model, data.patching, data.selection, alpha=alpha)
    return {
        "task": task,
        "alpha": alpha,
        "prompts": len(data.selection),
        "length": data.selection.length,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 2),
        "candidates": len(record.trace),
        "heads": len(circuit.heads),
        "mlps": len(circuit.mlps),
        "peak_rss_gib": round(peak_rss() / 2**30, 2),
    }


def main() -> None:
    """Read the case from the command line and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--survivors", choices=SURVIVORS, default="few")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=11)
    parser.add_argument("--hooked", type=int, default=0)
    parser.add_argument("--task", choices=TASKS)
    given = parser.parse_args()
    if given.task:
        found = run_task(given.task)
    else:
        found = run_case(given.shape, given.survivors, given.prompts, given.length, given.hooked)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
