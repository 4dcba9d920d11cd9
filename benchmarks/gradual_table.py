"""COST.md's tables of the gradual search: `python benchmarks/gradual_table.py`.

Estimates are on torch's meta device, which has shapes and no numbers; the GPU's rates are assumptions
(`cost_table.Gpu`). Measured figures are those of results/gradual_cost.json (`make gradual-cost`) and of
results/small_circuits.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import ceil
from typing import Any

from cost_table import COST, KERNELS_A_SUBLAYER, Gpu, render_table
from gradual_cost import RESULTS, TITLES, make_llama
from main_job import write_between

from exporter.circuit import SearchRecord, SizeStep
from exporter.network.model import CircuitModel
from exporter.search.gates import list_trained
from exporter.search.gradual_cost import (
    Work,
    count_gradual_bytes,
    count_gradual_flops,
    count_healing_bytes,
    find_largest_healed,
)
from exporter.search.gradual_path import Stop, follow_path, predict_path
from exporter.search.judging import CHUNK
from exporter.search.memory import plan_learning

SEARCHES = RESULTS.with_name("small_circuits.json")
ESTIMATED = ("135m", "1.7b", "7b")
TASK = Work(patching=1500, selection=250, length=20)  # acronym on SmolLM2 is about that
LINK = 300e9  # bytes a second that a sum over eight GPUs of one machine sustains for each
BYTES_OF_UPDATE = (
    36  # of a weight that learns: AdamW reads four numbers and writes three, clipping reads and writes one
)
SMALLER = 24e9  # bytes of a smaller GPU


def render_estimates() -> str:
    """Three models on one GPU and on eight, with one round of healing at each size and with all rounds."""
    rows: list[dict[str, object]] = []
    for shape in ESTIMATED:
        dense = make_llama(shape)
        paths = [predict_path(dense, all_steps=all_steps) for all_steps in (False, True)]
        ways = [follow_path(dense, path, TASK.length) for path in paths]
        for n_ranks in (1, 8):
            for rounds, stops in zip(("one round", "all rounds"), ways, strict=True):
                head: dict[str, object] = {"model": TITLES[shape], "GPUs": n_ranks}
                head["healing"] = f"{rounds}, {sum(stop.steps for stop in stops)} steps"
                rows.append(head | estimate(dense, stops, plan_work(dense, n_ranks)))
    return render_table(rows)


def estimate(dense: CircuitModel, stops: list[Stop], work: Work) -> dict[str, object]:
    """FLOPs of a rank by part, and its seconds by what they go to."""
    gpu, flops = Gpu(), count_gradual_flops(dense, stops, work)
    updates = sum(s.steps * sum(p.numel() for p in list_trained(s.model)) for s in stops)
    kernels = sum(KERNELS_A_SUBLAYER * n for stop in stops for n in count_runs(stop, work))
    seconds = {
        "products": sum(flops.values()) / gpu.flops,
        "updates": updates * BYTES_OF_UPDATE / gpu.bandwidth,
        "to start kernels": kernels * gpu.launch,
        "to sum gradients": updates * 4 * 2 * (work.n_ranks - 1) / work.n_ranks / LINK,
    }
    return {
        **{f"TFLOP, {part}": f"{n / 1e12:.3g}" for part, n in flops.items()},
        **{f"s, {part}": f"{took:.2g}" for part, took in seconds.items()},
        "s, all": f"{sum(seconds.values()):.3g}",
    }


def plan_work(dense: CircuitModel, n_ranks: int) -> Work:
    """The task, in the chunks that the search would choose with all of the GPU's other memory free."""
    free = int(Gpu().memory) - 4 * sum(p.numel() for p in dense.parameters())
    plan = plan_learning(dense, CHUNK, TASK.length, free // 2)
    return Work(TASK.patching, TASK.selection, TASK.length, plan=plan, n_ranks=n_ranks)


def count_runs(stop: Stop, work: Work) -> Iterator[int]:
    """How often a sublayer runs at one size, a backward pass being two: for scores and means, steps, judgements."""
    if stop.base is not None:
        n_sublayers = sum(1 for _ in stop.base.sublayers())
        yield n_sublayers * (3 * ceil(stop.scored / work.n_ranks / work.plan.chunk) + ceil(stop.scored / 64))
    n_sublayers = sum(1 for _ in stop.model.sublayers())
    yield n_sublayers * (3 * stop.steps + (1 + stop.rounds) * ceil(work.selection / CHUNK))


def render_memory() -> str:
    """What a rank holds, and which size does not fit."""
    rows: list[dict[str, object]] = []
    for shape in ESTIMATED:
        dense = make_llama(shape)
        stops = follow_path(dense, predict_path(dense), TASK.length)
        for n_ranks in (1, 8):
            work = plan_work(dense, n_ranks)
            held = count_gradual_bytes(dense, stops, work)
            steps = 4 * dense.count_parameters()
            rows.append(
                {
                    "model": TITLES[shape],
                    "GPUs": n_ranks,
                    "GB, dense model and answers": f"{held['dense'] / 1e9:.2f}",
                    "scores": f"{held['scores'] / 1e9:.2f}",
                    "healing": f"{held['healing'] / 1e9:.2f}",
                    "healing all of it": f"{(held['dense'] + steps + count_healing_bytes(dense, work)) / 1e9:.1f}",
                    "largest share healed in 24 GB": f"{find_largest_healed(dense, work, int(SMALLER)):.0%}",
                    "in 80 GB": f"{find_largest_healed(dense, work, int(Gpu().memory)):.0%}",
                }
            )
    return render_table(rows)


def render_check(results: dict[str, Any]) -> str:
    """Each part that was measured: FLOPs over seconds, and bytes."""
    rows, notes = [], []
    for shape, found in results["shapes"].items():
        for name, part in found["parts"].items():
            rate = part["flops"] / part["seconds"] / 1e9
            rows.append(
                {
                    "shape": TITLES[shape],
                    "part": name,
                    "GFLOP": f"{part['flops'] / 1e9:.0f}",
                    "seconds": f"{part['seconds']:.2f}",
                    "GFLOP/s": f"{rate:.1f}",
                    "of a product's median rate": f"{rate / found['gemm_gflops_per_s_median']:.0%}",
                    "MiB predicted": "" if part["predicted"] is None else f"{part['predicted'] / 2**20:.0f}",
                    "measured": f"{part['grown'] / 2**20:.0f}",
                }
            )
        machine = found["machine"]
        notes.append(
            f"{TITLES[shape]}: {machine['cpu']}, {machine['instructions']}, {found['threads']} thread(s), "
            f"{found['date']}; a product's rate {found['gemm_gflops_per_s_median']} GFLOP/s in the median, "
            f"{found['gemm_gflops_per_s']} at best; other processes took {found['others_seconds']:.0f} s of the "
            "processor meanwhile."
        )
    return render_table(rows) + "\n\n" + "\n".join(notes)


def render_searches() -> str:
    """Whole searches of the default preset on SmolLM2, by the sizes that they recorded."""
    rows, dense = [], make_llama("135m")
    for run in json.loads(SEARCHES.read_text(encoding="utf-8")):
        key, manifest = run["key"], run["manifest"]
        record = SearchRecord.from_json(manifest["circuit"])
        length = manifest["onnx"]["inputs"]["input_ids"][1]
        if key["model"] != "smollm2" or key["heal"] != "distil" or not isinstance(length, int):
            continue  # prompts of several lengths: nobody recorded the longest
        sizes = manifest["task"]["parameters"]["sizes"]
        work = Work(sizes["patching"], sizes["selection"], length)
        rows.append({"task": key["task"], "seed": key["seed"]} | describe_search(dense, record.path, work, run))
    return render_table(rows)


def describe_search(
    dense: CircuitModel, path: tuple[SizeStep, ...], work: Work, run: dict[str, Any]
) -> dict[str, object]:
    stops, seconds = follow_path(dense, path, work.length), run["manifest"]["seconds"]["search"]
    flops, held = count_gradual_flops(dense, stops, work), max(count_gradual_bytes(dense, stops, work).values())
    return {
        **{f"TFLOP, {part}": f"{n / 1e12:.2f}" for part, n in flops.items()},
        "seconds": f"{seconds:.0f}",
        "GFLOP/s": f"{sum(flops.values()) / seconds / 1e9:.0f}",
        "GiB predicted": f"{held / 2**30:.2f}",
        "peak of the job": f"{run['manifest']['peak_rss_gib']:.2f}",
    }


def main() -> None:
    """Write the tables."""
    tables = {
        "gradual estimates": render_estimates(),
        "gradual memory": render_memory(),
        "gradual check": render_check(json.loads(RESULTS.read_text(encoding="utf-8"))),
        "gradual searches": render_searches(),
    }
    for name, table in tables.items():
        write_between(COST, f"<!-- {name}: make gradual-cost -->", f"<!-- end of {name} -->", table)
        print(table, end="\n\n")


if __name__ == "__main__":
    main()
