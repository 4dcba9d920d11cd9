"""The figures as Markdown: one table for each comparison, the bars, and the summary for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inference.bars import MEGABYTE, Bar
from inference.matrix import CASES, CONTESTANTS, ON_CUDA, Contestant
from inference.records import Record, Results, find, select


def render_page(results: Results, bars: Sequence[Bar]) -> str:
    """The whole page of results."""
    parts = [
        "# Inference, measured",
        f"{describe_run(results)}. Written by `make bench-results` from the figures in inference.json.",
        "Times are medians over alternating blocks in one process; `of dense` is dense fp32 / this one, with the 95 % "
        "interval over blocks. `of GEMM` is the rate of the FLOPs that the answers need over that of the machine's "
        "best matrix product in this precision, which takes its turn in the same blocks; `of best GEMM` over its rate "
        "when it was measured alone, if that was higher; `of roofline` over what bandwidth leaves of the former. p99 "
        "of few calls is the slowest of them. `alone` is pytest-benchmark's median, without the others' turns. Peak "
        "memory is that of a fresh process above one that has no model.",
        "## What it must show",
        render_bars(bars),
        "![Latency by batch](inference_latency.png)",
        "![Memory](inference_memory.png)",
        "![Roofline](inference_roofline.png)",
        "## The machine",
        render_machine(results),
    ]
    for case in _cases(results):
        parts += [f"## {case}", describe_case(results, case)]
        parts += [f"{title}\n\n{table}" for title, table in _latency_tables(results, case)]
        for provider in CONTESTANTS:
            if footprints := select(results["footprint"], case=case, provider=provider):
                parts.append(
                    f"Each file in a process of its own, {provider.upper()}:\n\n{render_footprints(footprints)}"
                )
    return "\n\n".join(parts) + "\n"


def _cases(results: Results) -> list[str]:
    known = [*CASES["full"], *CASES["smoke"]]
    return sorted(results["cases"], key=known.index)


def describe_run(results: Results) -> str:
    """Hardware, versions and date, as they stand under every table."""
    machine, versions = results["machine"], results["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if versions.get(name))
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {shown}, {results['date']}"


def describe_case(results: Results, case: str) -> str:
    """One line: what is in the circuit and in its prompts."""
    known = results["cases"][case]
    opening = f", the first {known['opening']} the same in all" if known["opening"] else ""
    return (
        f"{known['heads']} heads in {known['head_layers']} layers, {known['mlps']} MLPs, "
        f"{known['parameters_circuit']:,} of {known['parameters_dense']:,} parameters; prompts of {known['pos']} "
        f"tokens{opening}; {known['answers']} answers, {known['vocabulary']} tokens in the task's vocabulary."
    )


def _latency_tables(results: Results, case: str) -> Iterable[tuple[str, str]]:
    records = select(results["latency"], case=case)
    for provider, threads, batch in dict.fromkeys((r["provider"], r["threads"], r["batch"]) for r in records):
        rows = select(records, provider=provider, threads=threads, batch=batch)
        others = max(r["others_share"] for r in rows)
        title = f"Batch {batch}, {_where(threads)} (others used {others:.0%} of the machine at most):"
        yield title, render_latency(rows)


def render_latency(records: Sequence[Record]) -> str:
    """One comparison: a row for each contestant."""
    head = [
        "contestant",
        "p50 ms",
        "p90",
        "p95",
        "p99",
        "calls",
        "alone",
        "of dense [95 %]",
        "prompts/s",
        "MFLOP",
        "MB read",
    ]
    head += ["of GEMM", "of best GEMM", "of roofline", "largest difference", "same answer"]
    rows = []
    for record in records:
        low, high = record["speedup_ci95"]
        rows.append(
            [
                _who(record).label,
                *(f"{record[f'p{p}_ms']:.3g}" for p in (50, 90, 95, 99)),
                str(record["calls"]),
                f"{record['alone_ms']:.3g}",
                f"{record['speedup']:.3g} x [{low:.3g}, {high:.3g}]",
                f"{record['prompts_per_s']:,.0f}",
                f"{record['flops'] / 1e6:,.1f}",
                f"{record['needed_bytes'] / MEGABYTE:,.1f}",
                _percent(record.get("share_of_gemm")),
                _percent(record.get("share_of_best_gemm")),
                _percent(record.get("share_of_roofline")),
                f"{record['max_error']:.1e}",
                f"{record['agreement']:.1%}" + ("" if record["near"] else ", **wrong**"),
            ]
        )
    return render(head, rows)


def render_footprints(records: Sequence[Record]) -> str:
    """Files in fresh processes."""
    batch = records[0]["batch"]
    head = ["contestant", "file MB", "nodes", "session ms", "first inference ms", "peak MB, batch 1"]
    head += [f"batch {batch}", "largest peak / file"]
    on_device = all("device_bytes" in record for record in records)
    head += ["device MB"] if on_device else []
    rows = [
        [
            _who(record).label,
            f"{record['bytes'] / MEGABYTE:.1f}",
            str(record["nodes"]),
            f"{record['session_ms']:.0f}",
            f"{record['first_ms']:.2f}",
            f"{record['above_peak_bytes_one'] / MEGABYTE:.0f}",
            f"{record['above_peak_bytes_many'] / MEGABYTE:.0f}",
            f"{record['above_peak_bytes_many'] / record['bytes']:.2f}",
            *([f"{record['device_bytes'] / MEGABYTE:,.0f}"] if on_device else []),
        ]
        for record in records
    ]
    return render(head, rows)


def render_machine(results: Results) -> str:
    """The ceilings."""
    rows = [
        [
            f"matrix products, {r['precision']}, {_where(r['threads'])}",
            f"{r['gflops_per_s']:,.0f} GFLOP/s (best call {r['best_call_gflops_per_s']:,.0f})",
            f"{r['engine']}, {' x '.join(map(str, r['shape']))}",
        ]
        for r in results["gemm"]
    ]
    for record in results["bandwidth"]:
        for size, rate in record["gb_per_s"].items():
            rows.append(
                [f"reading {int(size) / 2**20:g} MiB, {_where(record['threads'])}", f"{rate:.1f} GB/s", "torch"]
            )
    return render(["what", "rate", "how"], rows)


def render_bars(bars: Sequence[Bar]) -> str:
    """Every bar with its value."""
    verdicts = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        [
            bar.name,
            f"{bar.sense} {bar.limit:g} {bar.unit}".strip(),
            "–" if bar.value is None else f"{bar.value:.3g} {bar.unit}".strip(),
            verdicts[bar.passed],
        ]
        for bar in bars
    ]
    return render(["GPT-2 Small's shape, the reference circuit", "bar", "measured", "met"], rows)


def render_summary(results: Results) -> str:
    """The table of docs/benchmarks.md: one row for each circuit."""
    head = ["circuit", "dense, batch 1 / 32", "as in the paper", "answers, fp32", "answers, int8"]
    head += ["file MB: dense, paper, task, task int8", "peak MB: dense, task, task int8"]
    rows = []
    for case in _cases(results):
        records = select(results["latency"], case=case, provider="cpu")
        threads = max(r["threads"] for r in records)
        timed = {(r["contestant"], r["batch"]): r for r in select(records, threads=threads)}
        batches = [batch for batch in (1, 32) if ("dense", batch) in timed]
        times = [[timed.get((name, batch)) for batch in batches] for name in ("dense", "paper", "answers", "int8")]
        files = [
            find(results["footprint"], case=case, contestant=name, provider="cpu")
            for name in ("dense", "paper", "task", "task-int8")
        ]
        known = results["cases"][case]
        rows.append(
            [
                f"{case}: {known['heads']} heads, {known['mlps']} MLPs",
                " / ".join("–" if r is None else f"{r['p50_ms']:.3g}" for r in times[0]) + " ms",
                *(_times_and_ratio(found) for found in times[1:]),
                ", ".join("–" if r is None else f"{r['bytes'] / MEGABYTE:.1f}" for r in files),
                ", ".join(
                    "–" if r is None else f"{r['above_peak_bytes_many'] / MEGABYTE:.0f}"
                    for r in (files[0], files[2], files[3])
                ),
            ]
        )
    note = (
        f"Medians in ONNX Runtime over alternating blocks, and how many times faster than dense; all threads. "
        f"{describe_run(results)}. Everything else: "
        "[benchmarks/results/inference.md](../benchmarks/results/inference.md)."
    )
    return f"{render(head, rows)}\n\n{note}"


def _times_and_ratio(found: Sequence[Record | None]) -> str:
    times = " / ".join("–" if r is None else f"{r['p50_ms']:.3g}" for r in found)
    ratios = " / ".join("–" if r is None else f"{r['speedup']:.3g}" for r in found)
    return f"{times} ms ({ratios} x)"


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _who(record: Record) -> Contestant:
    return CONTESTANTS[record["provider"]][record["contestant"]]


def _where(threads: int) -> str:
    return {ON_CUDA: "CUDA", 1: "1 thread"}.get(threads, f"{threads} threads")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
