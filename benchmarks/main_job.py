"""Run the main job on a model's tasks and write the tables of docs/benchmarks.md: `make results`.

The manifests, without their traces, go to benchmarks/results/main_job.json with the machine they were
taken on; the tables between the markers in docs/benchmarks.md are generated from that file. `--model smollm2` runs
the real model's jobs and leaves the bundled one's as they are; tasks may be named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from exporter.tasks import EXAMPLES, TASKS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SETS = ["--patching-prompts", "100", "--selection-prompts", "100", "--test-prompts", "500"]
JOBS: dict[str, dict[str, list[str]]] = {  # model, task, options
    "bundled": {task: [] for task in TASKS},
    "smollm2": {
        "acronym": SETS,
        "ioi": [*SETS, "--template", "paper"],
        "agreement.jsonl": ["--patching-prompts", "124", "--alpha", "0.004"],
        # alpha 0.02 lost 5 points on patching and selection sets
        "sentiment.jsonl": ["--patching-prompts", "140", "--selection-prompts", "48", "--alpha", "0.005"],
    },
}
CAPTIONS = {
    "bundled": "Bundled checkpoint, mean ablation by position, 500 held-out prompts",
    "smollm2": "SmolLM2-135M-Instruct (dequantised from Q4_1), mean ablation by position; acronym and ioi (the "
    "paper's template) with 100 patching, 100 selection and 500 test prompts, agreement.jsonl with 124, "
    "124 and 248, sentiment.jsonl with 140, 48 and 401",
}


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


def run_task(model: str, task: str, options: list[str], folder: Path) -> dict[str, Any]:
    """The manifest of one main job, without its trace, with its wall time and peak memory."""
    start = time.perf_counter()
    path = str(resources.files("exporter.tasks") / "examples" / task) if task in EXAMPLES else task
    command = [sys.executable, "-m", "exporter", "--task", path, "--model", model, "--out", str(folder / "m.onnx")]
    with (folder / "manifest").open("w+b") as out:
        process = subprocess.Popen([*command, *options, "--json", "--force"], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{task} on {model} failed: status {status}")
        out.seek(0)
        manifest: dict[str, Any] = json.load(out)
    del manifest["circuit"]["trace"]
    wall = round(time.perf_counter() - start, 1)
    return manifest | {"wall_seconds": wall, "peak_rss_gib": round(usage.ru_maxrss / 2**20, 2)}


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
        f"{found['wall_seconds']:.0f} s, {found['peak_rss_gib']:.1f} GiB",
    ]
    return "| " + " | ".join(cells) + " |"


def render_table(model: str, results: dict[str, Any]) -> str:
    """The Markdown between the markers of one model."""
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
        f"{CAPTIONS[model]}; latency: medians in ONNX Runtime {versions.get('onnxruntime', '')}, dense with logits at "
        f"all positions / circuit with those of the last one, both in fp32 and exported by us. {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {results['date']}.",
    ]
    return "\n".join(lines)


def write_between(path: Path, begin: str, end: str, markdown: str) -> None:
    """Replace what stands between two markers of a Markdown file."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n{markdown}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main() -> None:
    """Run a model's tasks, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=JOBS, default="bundled")
    parser.add_argument("tasks", nargs="*")
    given = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    results = known.setdefault(given.model, {"tasks": {}})
    for task in given.tasks or JOBS[given.model]:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--preset", "paper", *JOBS[given.model][task]]
            results["tasks"][task] = run_task(given.model, task, options, Path(folder))
        results |= {"date": datetime.date.today().isoformat(), "machine": describe_machine()}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        table = render_table(given.model, results)
        write_between(PAGE, f"<!-- results of {given.model} -->", "<!-- end of results -->", table)
    print(table)


if __name__ == "__main__":
    main()
