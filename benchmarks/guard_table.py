"""How well the scope guard tells prompts of a task from others: `make guard-results`.

For each task of a model: the circuit of a search, or of FOLDER/<task>.json with `--circuits FOLDER` (manifests that the
main job left); then fp32 and int8 files with the guard, run on the task's sets and on what is not of the task, and
timed at batch 1 against the same file without it. Results go to benchmarks/results/guard.json, the table into
docs/guard.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from main_job import ROOT, describe_machine, write_between

from exporter.evidence.latency import compare_latency
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx
from exporter.job.guard import plan_scope, try_guard
from exporter.job.options import Job
from exporter.job.plan import Plan, prepare
from exporter.job.run import run_job
from exporter.network.model import CircuitModel
from exporter.outputs.manifest import Manifest
from exporter.rewrite.surgery import operate, plan_surgery
from exporter.tasks import TASKS, SplitSizes

RESULTS = ROOT / "benchmarks" / "results" / "guard.json"
PAGE = ROOT / "docs" / "guard.md"
START, END = "<!-- results -->", "<!-- end of results -->"
BLOCKS = 15


def main() -> None:
    """Measure the tasks that are named, all by default, and write the table of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--circuits", type=Path, help="a folder with <task>.json")
    parser.add_argument("tasks", nargs="*", help="default: all built-in ones")
    given = parser.parse_args()
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for task in given.tasks or TASKS:
        with make_scratch() as folder:
            circuit = search(given.model, task, folder) if given.circuits is None else given.circuits / f"{task}.json"
            rows = measure_task(given.model, task, circuit, folder)
        others = [row for row in stored["rows"] if (row["model"], row["task"]) != (given.model, task)]
        stored["rows"] = sorted(others + rows, key=lambda row: (row["model"], row["task"], row["precision"]))
        stored["machine"] = describe_machine()
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    table = render_table(stored["rows"])
    write_between(PAGE, START, END, table)
    print(table)


def search(model: str, task: str, folder: Path) -> Path:
    """The manifest of the default search."""
    run_job(Job(task, folder / "searched.onnx", model=model))
    return folder / "searched.json"


def measure_task(model: str, task: str, circuit: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each precision."""
    sizes = SplitSizes(**Manifest.load(circuit).task.parameters["sizes"])
    plan = prepare(Job(task, None, model=model, circuit=circuit, sizes=sizes, guard=True))
    assert plan.circuit is not None, "a manifest has one"
    surgery = plan.surgery or plan_surgery(plan.model, plan.circuit, plan.data.patching)
    network = operate(plan.model.dense, surgery)
    made = [measure_file(plan, network, folder, precision) for precision in ("fp32", "int8")]
    return [{"model": model, "task": task, **row} for row in made]


def measure_file(plan: Plan, network: CircuitModel, folder: Path, precision: Any) -> dict[str, Any]:
    """What the guard of one file says, and the file's time over that of one without it."""
    options = replace(plan.options, precision=precision)
    scope = plan_scope(plan, network, options, rehearsed=False)
    guarded, bare = folder / "guarded.onnx", folder / "bare.onnx"
    export_onnx(network, guarded, options, scope=scope)
    export_onnx(network, bare, replace(options, guard=False))
    figures = try_guard(plan, network, guarded, options, scope)
    assert figures is not None, "the job has a guard"
    test = plan.data.test
    mask = None if test.mask is None else test.mask[:1]
    timed = compare_latency(bare, guarded, test.input_ids[:1], mask, blocks=BLOCKS, threads=1)
    return {"precision": precision, "guard": asdict(figures), "latency": asdict(timed)}


def render_table(rows: list[dict[str, Any]]) -> str:
    """One row for each task and precision."""
    lines = [
        "| model, task | file | false alarms | unseen sets, refused | not of the task: refused, AUROC | time with it |",
        "|---|---|---:|---|---|---:|",
    ]
    for row in rows:
        guard, low_high = row["guard"], row["guard"]["test"]["ci95"]
        alarms = f"{guard['test']['refused']:.1%} [{low_high[0]:.1%}, {low_high[1]:.1%}]"
        unseen = ", ".join(f"{name} {found['refused']:.0%}" for name, found in guard["unseen"].items())
        others = ", ".join(f"{n} {found['refused']:.0%}, {found['auroc']:.3f}" for n, found in guard["others"].items())
        timed = row["latency"]  # None: the machine was not quiet, and what it measured is no result
        time = "not measured" if timed is None else f"{1e3 * timed['circuit']:.3f} ms, {1 / timed['speedup'] - 1:+.0%}"
        lines.append(
            f"| {row['model']} | {row['task']} | {row['precision']} | {alarms} | {unseen} | {others} | {time} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
