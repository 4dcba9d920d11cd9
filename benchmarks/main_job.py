"""Run the main job on every task and write the README's table: `python benchmarks/main_job.py` (`make results`).

The manifests, without their traces, go to benchmarks/results/main_job.json with the machine they were
taken on; the table between the markers in README.md is generated from that file.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from exporter.tasks import TASKS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
BEGIN, END = "<!-- results: make results -->", "<!-- end of results -->"


def describe_machine() -> dict[str, Any]:
    """Processor, cores and memory, as the operating system names them."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "os": platform.system(),
    }


def run_task(task: str, folder: Path) -> dict[str, Any]:
    """The manifest of one main job on the bundled checkpoint, without its trace, and its wall time."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "exporter", "--task", task, "--model", "bundled", "--out", str(folder / "m.onnx")]
    done = subprocess.run([*command, "--json", "--force"], capture_output=True, text=True, check=True)
    manifest: dict[str, Any] = json.loads(done.stdout)
    del manifest["circuit"]["trace"]
    return manifest | {"wall_seconds": round(time.perf_counter() - start, 1)}


def render_row(task: str, found: dict[str, Any]) -> str:
    """One task as a row of the table."""
    test, size, circuit = found["test"], found["size"], found["circuit"]
    low, high = test["circuit"]["ci95"]
    ood = ", ".join(f"{name} {figures['circuit']['accuracy']:.1%}" for name, figures in found["ood"].items())
    one, many = found["latency"]
    cells = [
        task,
        f"{circuit['alpha']:g}",
        f"{len(circuit['heads'])} of {found['model']['n_layers'] * found['model']['n_heads']}",
        f"{len(circuit['mlps'])} of {found['model']['n_layers']}",
        f"{-size['reduction']:.1%}",
        f"{test['dense']['accuracy']:.1%}",
        f"{test['circuit']['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
        ood,
        f"{test['kl']:.3f}",
        f"{one['dense'] * 1e3:.1f} / {one['circuit'] * 1e3:.1f} ms ({one['speedup']:.1f} x)",
        f"{many['dense'] * 1e3:.0f} / {many['circuit'] * 1e3:.0f} ms ({many['speedup']:.1f} x)",
        f"{found['wall_seconds']:.0f} s",
    ]
    return "| " + " | ".join(cells) + " |"


def render_table(results: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    machine, versions = results["machine"], next(iter(results["tasks"].values()))["versions"]
    head = [
        "task", "alpha", "heads", "MLPs", "parameters", "dense accuracy", "circuit accuracy [95 %]", "unseen",
        "KL", "latency, batch 1", "batch 32", "whole job",
    ]  # fmt: skip
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(render_row(task, found) for task, found in results["tasks"].items()),
        "",
        f"Bundled checkpoint, mean ablation by position, 500 held-out prompts; latency: medians in ONNX Runtime "
        f"{versions.get('onnxruntime', '')}, dense / circuit, both exported by us with logits at all positions. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {results['date']}.",
    ]
    return "\n".join(lines)


def write_between(path: Path, begin: str, end: str, markdown: str) -> None:
    """Replace what stands between two markers of a Markdown file."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n{markdown}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    """Run all tasks, write the results and the README's table."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = {task: run_task(task, Path(folder)) for task in TASKS}
    results = {"date": datetime.date.today().isoformat(), "machine": describe_machine(), "tasks": tasks}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_between(ROOT / "README.md", BEGIN, END, render_table(results))
    print(render_table(results))


if __name__ == "__main__":
    main()
