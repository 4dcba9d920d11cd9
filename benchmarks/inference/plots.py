"""The figures of the reference circuit as plots, each as SVG and PNG; a contestant has one colour in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from inference.bars import MEGABYTE
from inference.matrix import CONTESTANTS, REFERENCE
from inference.records import Record, Results, select
from inference.tables import describe_run

# Paul Tol's bright and muted schemes, which colour-blind readers tell apart: greys dense, warm PyTorch, cold ours
COLOURS = {
    "dense": "#333333",
    "dense-optimum": "#999999",
    "dense-int8": "#AA7744",
    "dense-int8-ort": "#DDAA77",
    "eager": "#CC3311",
    "compile": "#EE7733",
    "paper": "#AA3377",
    "last": "#33BBEE",
    "answers": "#0077BB",
    "task": "#004488",
    "task-external": "#77AADD",
    "ort": "#6699CC",
    "int8": "#009988",
    "int8-ort": "#88CCAA",
    "int8-token": "#999933",
    "task-int8": "#225522",
    "task-int8-external": "#44BB99",
}
_CEILINGS = {"fp32": "#0077BB", "int8": "#009988"}
_SIZE = (10.0, 5.5)  # inches


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Write every plot that there are figures for."""
    plots: dict[str, Callable[[Results], Figure]] = {
        "inference_latency": draw_latency,
        "inference_memory": draw_memory,
        "inference_roofline": draw_roofline,
    }
    written = []
    # text stays text, and the ids in an SVG are the same whenever it is drawn
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "export-circuit", "font.size": 10}):
        for name, draw in plots.items():
            figure = draw(results)
            for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 120})):
                figure.savefig(folder / f"{name}{suffix}", **options)
                written.append(folder / f"{name}{suffix}")
    return written


def _start(results: Results, title: str) -> tuple[Figure, Axes]:
    """An empty plot whose title names the hardware."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.suptitle(f"{title}\n{describe_run(results)}", fontsize=10, x=0.01, horizontalalignment="left")
    return figure, figure.subplots()


def _use_plain_numbers(*axes: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, as numbers."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def _records(results: Results, kind: str) -> list[Record]:
    """The reference circuit's on the CPU with all threads; of a run without it those of its first case."""
    cases = list(results["cases"])
    case = REFERENCE if REFERENCE in cases else cases[0]
    found = select(results[kind], case=case, provider="cpu")
    if kind == "latency":
        most = max(r["threads"] for r in found)
        found = select(found, threads=most)
    return found


def draw_latency(results: Results) -> Figure:
    """Milliseconds by batch, both axes logarithmic."""
    records = _records(results, "latency")
    figure, axes = _start(results, f"Latency, GPT-2 Small's shape, prompts of 11 tokens, {_threads(records)} threads")
    for name in dict.fromkeys(r["contestant"] for r in records):
        rows = sorted(select(records, contestant=name), key=lambda r: int(r["batch"]))
        batches, times = [r["batch"] for r in rows], [r["p50_ms"] for r in rows]
        axes.plot(batches, times, "o-", color=COLOURS[name], label=_label(name), markersize=4, linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _use_plain_numbers(axes.yaxis)
    batches = sorted({r["batch"] for r in records})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("batch (prompts in a call)")
    axes.set_ylabel("median milliseconds of a call")
    axes.grid(which="both", color="#DDDDDD", linewidth=0.5)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def draw_memory(results: Results) -> Figure:
    """The file, and the peak memory above an empty process, as bars."""
    records = _records(results, "footprint")
    batch = records[0]["batch"]
    largest = max(max(r["bytes"], r["above_peak_bytes_many"]) for r in records) / MEGABYTE
    figure, axes = _start(
        results, f"File, and peak memory above an ONNX Runtime process without a model, batch {batch}"
    )
    for place, record in enumerate(records):
        colour = COLOURS[record["contestant"]]
        values = {"file": record["bytes"] / MEGABYTE, "peak": record["above_peak_bytes_many"] / MEGABYTE}
        for offset, (kind, value) in zip((-0.2, 0.2), values.items(), strict=True):
            hatch = "//" if kind == "file" else ""
            face = "white" if kind == "file" else colour
            axes.barh(place + offset, value, 0.38, color=face, edgecolor=colour, hatch=hatch)
            axes.text(value + largest / 100, place + offset, f"{value:,.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(records)), [_label(r["contestant"]) for r in records])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * largest)
    axes.set_xlabel("MB (hatched: file; filled: peak memory)")
    return figure


def draw_roofline(results: Results) -> Figure:
    """Rates over FLOPs a byte, under the machine's ceilings."""
    records = [r for r in _records(results, "latency") if r["batch"] in (1, 8, 32)]
    figure, axes = _start(results, "Roofline: FLOPs that the answers need, over the bytes that have to be read")
    threads = _threads(records)
    intensities = [r["flops"] / r["needed_bytes"] for r in records]
    low, high = min(intensities) / 2, max(intensities) * 2
    sizes = next(r["gb_per_s"] for r in results["bandwidth"] if r["threads"] == threads)
    bandwidths = {"caches": max(sizes.values()), "memory": sizes[max(sizes, key=int)]}  # GB/s
    for precision, rate in _ceilings(results, threads).items():
        colour = _CEILINGS[precision]
        for place, (where, bandwidth) in enumerate(bandwidths.items()):
            xs = [low, rate / bandwidth, max(high, 2 * rate / bandwidth)]
            style = "-" if place == 0 else "--"
            label = f"{precision}: {rate:,.0f} GFLOP/s, {where} {bandwidth:.0f} GB/s"
            axes.plot(xs, [low * bandwidth, rate, rate], style, color=colour, linewidth=1, label=label)
    markers = {1: "o", 8: "^", 32: "s"}
    for record in records:
        rate = record["flops"] / record["p50_ms"] / 1e6  # GFLOP/s
        name, batch = record["contestant"], record["batch"]
        place = record["flops"] / record["needed_bytes"]
        axes.plot(place, rate, markers[batch], color=COLOURS[name], markersize=6, linestyle="none")
    for name in dict.fromkeys(r["contestant"] for r in records):
        axes.plot([], [], "o", color=COLOURS[name], label=_label(name))
    for batch in sorted({r["batch"] for r in records}):
        axes.plot([], [], markers[batch], color="white", markeredgecolor="black", label=f"batch {batch}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _use_plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_xlabel("FLOPs a byte")
    axes.set_ylabel("GFLOP/s reached")
    axes.grid(which="both", color="#DDDDDD", linewidth=0.5)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def _ceilings(results: Results, threads: int) -> dict[str, float]:
    rates: dict[str, Any] = {r["precision"]: r["gflops_per_s"] for r in results["gemm"] if r["threads"] == threads}
    return {precision: rates[precision] for precision in _CEILINGS if precision in rates}


def _threads(records: Sequence[Record]) -> int:
    return int(records[0]["threads"])


def _label(name: str) -> str:
    contestant = CONTESTANTS["cpu"][name]
    if contestant.external_data:
        return CONTESTANTS["cpu"][name.removesuffix("-external")].label + ", external data"
    return contestant.label
