"""Measure what the parts of a gradual search take, beside what the cost model says: `make gradual-cost`.

    python benchmarks/gradual_cost.py            # both shapes, a few minutes
    python benchmarks/gradual_cost.py 360m       # one; the other's figures stay as they are

SmolLM2-135M itself, and random weights in the shape of SmolLM2-360M; random prompts, since only their number and
length count. Each part is one call of the search's own function: seconds, by how much the process grew at its peak, and
what `exporter.search.gradual_cost` says of both. `OMP_NUM_THREADS` says how many threads; results/gradual_cost.json
tells of it, of what else the machine did meanwhile, and of the rate of a matrix product in the same run. Linux only.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from main_job import describe_machine
from search_case import measure_gemm_rates
from search_results import count_others_seconds
from torch import Tensor

from exporter.circuit import Ablation
from exporter.loading.load import load_model
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.positions import Rotary
from exporter.network.step import Step
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.search.gates import score_units
from exporter.search.gradual_cost import (
    Work,
    count_healing_bytes,
    count_judging_flops,
    count_means_flops,
    count_scores_bytes,
    count_scores_flops,
    count_step_flops,
)
from exporter.search.gradual_path import count_units, spread_units
from exporter.search.healing import LOOKS, Healer, draw_likelihood
from exporter.search.judging import judge_network
from exporter.search.lessons import Lessons, ask_dense
from exporter.search.state import pick_tables
from exporter.tasks.dataset import Dataset

RESULTS = Path(__file__).parent / "results" / "gradual_cost.json"
SHAPES = {  # layers, heads, heads of keys and values, width, neurons, vocabulary
    "135m": (30, 9, 3, 576, 1536, 49152),
    "360m": (32, 15, 5, 960, 2560, 49152),
    "1.7b": (24, 32, 32, 2048, 8192, 49152),
    "7b": (32, 32, 32, 4096, 11008, 32000),
}
TITLES = {"135m": "SmolLM2-135M", "360m": "SmolLM2-360M's shape", "1.7b": "SmolLM2-1.7B", "7b": "Llama-7B"}
MEASURED = ("135m", "360m")
WORK = Work(patching=128, selection=64, length=16)
SCORED, STEPS = 64, 8
LARGE, SMALL = 0.1, 0.015  # shares of heads and neurons that are healed
PEAKED = 6.0  # standard deviation of random logits: few tokens are likely then, as behind a task's prompts


def make_llama(shape: str, *, device: str = "meta", seed: int = 0) -> CircuitModel:
    """A dense model with random weights, or with none on the meta device. 7 B is untied."""
    n_layers, n_heads, n_kv, d_model, d_mlp, d_vocab = SHAPES[shape]
    d_head, generator = d_model // n_heads, None if device == "meta" else torch.Generator().manual_seed(seed)

    def draw(n: int, m: int, scale: float | None = None) -> Tensor:
        drawn = torch.randn(n, m, device=device, generator=generator)
        return drawn.mul_(n**-0.5 if scale is None else scale)

    def norm() -> Norm:
        return Norm(torch.ones(d_model, device=device), eps=1e-5, rms=True)

    steps = []
    for layer in range(n_layers):
        kv = n_kv * d_head
        widths = {"W_Q": (d_model, d_model), "W_K": (d_model, kv), "W_V": (d_model, kv), "W_O": (d_model, d_model)}
        tensors = {name: draw(*width) for name, width in widths.items()}
        heads, group = tuple(range(n_heads)), n_heads // n_kv
        attention = Attention(norm(), tensors, layer=layer, heads=heads, scale=d_head**-0.5, group=group)
        tensors = {name: draw(d_model, d_mlp) for name in ("W_in", "W_gate")} | {"W_out": draw(d_mlp, d_model)}
        steps += [Step([attention]), Step([FeedForward(norm(), tensors, layer=layer, activation="silu")])]
    inv_freq = 1e4 ** (-torch.arange(0, d_head, 2, device=device) / d_head)
    return CircuitModel(
        steps,
        W_E=draw(d_vocab, d_model, PEAKED * d_model**-0.5),
        W_U=draw(d_vocab, d_model) if shape == "7b" else None,
        rotary=Rotary(inv_freq, scale=1.0),
        final_norm=norm(),
        max_length=2048,
    )


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a search: what is called, and what the cost model says of it."""

    run: Callable[[], object]
    flops: int
    bytes: int | None = None


def list_parts(dense: CircuitModel) -> Iterator[tuple[str, Part]]:
    """The parts, each made when it comes to it, so that it has the memory for itself."""
    generator = torch.Generator().manual_seed(1)
    patching, selection = (make_prompts(n, len(dense.W_E), generator) for n in (WORK.patching, WORK.selection))
    layers = {sublayer.layer for sublayer in dense.sublayers()}
    tables: list[Replacements] = []

    def take_means() -> None:
        tables.append(compute_replacements(dense, patching, ablation=Ablation(), neurons=layers))

    yield "means, dense model", Part(take_means, count_means_flops(dense, WORK.patching, WORK))
    teacher = ask_dense(dense, patching)
    work = replace(WORK, entries=len(teacher.shorten()[1].tokens))
    for name, share, recompute in (
        ("scores, dense model", 1.0, False),
        ("scores, dense model, recomputed", 1.0, True),
        ("scores, a fifth of the units", 0.2, False),
    ):
        model = dense if share == 1.0 else shrink(dense, share)
        again = replace(work, plan=replace(work.plan, recompute=recompute))
        yield name, make_scores(model, teacher, pick_tables(tables[0], model), again)
    for name, share in (("healing, a tenth", LARGE), ("healing, 1.5 %", SMALL)):
        yield name, make_healing(shrink(dense, share), teacher, work)
    model, asked = shrink(dense, LARGE), ask_dense(dense, selection)
    flops = count_judging_flops(model, work.selection, work)
    yield "judging, a tenth", Part(lambda: judge_network(model, asked), flops)


def make_prompts(n: int, d_vocab: int, generator: torch.Generator) -> Dataset:
    ids = torch.randint(d_vocab, (n, WORK.length), generator=generator)
    return Dataset(ids, ids[:, 0].contiguous())


def shrink(dense: CircuitModel, share: float) -> CircuitModel:
    units = [round(share * count_units(dense, kind)) for kind in ("heads", "neurons")]
    return spread_units(dense, *units, length=WORK.length)


def make_scores(model: CircuitModel, teacher: Lessons, means: Replacements, work: Work) -> Part:
    parts, generator = teacher.take(torch.arange(SCORED)).split(work.plan.chunk), torch.Generator().manual_seed(2)
    prompts = [part.prompts for part in parts]
    likelihoods = [draw_likelihood(part, "dense", generator) for part in parts]

    def run() -> None:
        score_units(model, prompts, likelihoods, means, recompute=work.plan.recompute)

    return Part(run, count_scores_flops(model, SCORED, work), count_scores_bytes(model, work))


def make_healing(model: CircuitModel, teacher: Lessons, work: Work) -> Part:
    """Steps with their looks, and the shortlist made before."""
    aside, rest = torch.arange(len(teacher)).split([work.aside, work.lessons])
    healer = Healer(teacher.take(rest), teacher.take(aside), plan=work.plan)
    flops = STEPS * count_step_flops(model, work) + (LOOKS + 1) * count_judging_flops(model, work.aside, work)
    flops += 2 * work.lessons * 2 * model.W_U.numel()  # the shortlist
    return Part(lambda: healer.heal(model, steps=STEPS, seed=0), flops, count_healing_bytes(model, work))


def measure(part: Part) -> dict[str, Any]:
    """Seconds, and by how many bytes the process grew at its peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    part.run()
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {"seconds": round(seconds, 3), "flops": part.flops, "grown": peak - before, "predicted": part.bytes}


def run_shape(shape: str) -> dict[str, Any]:
    """Everything about one shape, in this process."""
    torch.set_grad_enabled(True)
    dense = load_model("smollm2").dense if shape == "135m" else make_llama(shape, device="cpu")
    _, _, _, d_model, d_mlp, _ = SHAPES[shape]
    assert dense.count_parameters() == make_llama(shape).count_parameters()
    found = {}
    for name, part in list_parts(dense):
        found[name] = measure(part)
        print(shape, name, json.dumps(found[name]), file=sys.stderr, flush=True)
    rate, middle = measure_gemm_rates(WORK.plan.chunk * WORK.length, torch.randn(d_model, d_mlp))
    rates = {"gemm_gflops_per_s": round(rate / 1e9, 1), "gemm_gflops_per_s_median": round(middle / 1e9, 1)}
    return {"threads": torch.get_num_threads(), **rates, "parts": found}


def main() -> None:
    """Measure the shapes that are named, or both, each in a process of its own."""
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(run_shape(sys.argv[2])))
        return
    shapes = json.loads(RESULTS.read_text(encoding="utf-8"))["shapes"] if RESULTS.exists() else {}
    for shape in sys.argv[1:] or MEASURED:
        others = count_others_seconds()
        done = subprocess.run([sys.executable, __file__, "--here", shape], check=True, stdout=subprocess.PIPE)
        others = count_others_seconds() - others
        shapes[shape] = json.loads(done.stdout) | {
            "others_seconds": round(others, 1),
            "machine": describe_machine() | {"instructions": torch.backends.cpu.get_cpu_capability()},
            "date": datetime.date.today().isoformat(),
        }
        RESULTS.write_text(json.dumps({"shapes": shapes}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
