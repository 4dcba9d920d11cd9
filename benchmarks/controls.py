"""Two questions about the default job that take many jobs, answered in tables of docs/evidence.md: `make controls`.

seeds: is a bound on accuracy kept on prompts that nobody has read? The job with `--min-accuracy 99%` on the bundled
checkpoint's tasks, 20 seeds each. It is kept where 99 % of the dense model's accuracy on the test set lies within or
below the 95 % interval of the circuit's.

shuffled: does the job find what is not there? The same job on shuffled answers, taught by them, on the built-in tasks
and the example files: under the default budget, which is refused, and cut to 3 % whatever that does to accuracy, which
ends at chance.

What is in benchmarks/results/controls.json already is not run again; `--anew` does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from main_job import ROOT, describe_machine, run_task, write_between

from exporter.job.options import Job
from exporter.job.plan import prepare
from exporter.search.rules import Budget
from exporter.studies.control_searches import run_shuffled, shuffle_plan
from exporter.tasks import EXAMPLES, TASKS

RESULTS = ROOT / "benchmarks" / "results" / "controls.json"
PAGE = ROOT / "docs" / "evidence.md"
END = "<!-- end of results -->"
SHARE = 0.99
OPTIONS = ["--preset", "deploy", "--logits", "answers", "--vocab", "task", "--min-accuracy", f"{SHARE:.0%}"]
BUDGETS = {"default": None, "3 % of the size": Budget(max_params="3%")}
INFEASIBLE = 3  # the exit code of a job whose budget no circuit keeps

Stored = dict[str, dict[str, Any]]


def run_seed(model: str, task: str, seed: int) -> dict[str, Any]:
    """One job in a process of its own: what its manifest says of size and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = run_task(model, task, [*OPTIONS, "--seed", str(seed)], Path(folder))
        except SystemExit as error:
            if not str(error).endswith(f"status {INFEASIBLE << 8}"):
                raise
            return {"refused": str(error)}
    test = {side: manifest["test"][side] for side in ("dense", "circuit")}
    return {"test": test, "n": manifest["test"]["n"], "size": manifest["size"], "seconds": manifest["wall_seconds"]}


def is_kept(found: dict[str, Any]) -> bool:
    """Whether the bound lies within or below the circuit's interval on the test set."""
    test = found["test"]
    return bool(SHARE * test["dense"]["accuracy"] <= test["circuit"]["ci95"][1])


def run_shuffled_task(model: str, task: str, budget: str) -> dict[str, Any]:
    """The negative control of one task; one that the model cannot do is taken, too: its answers say nothing anyway."""
    path = str(resources.files("exporter.tasks") / "examples" / task) if task in EXAMPLES else task
    plan = prepare(Job(path, None, model, budget=BUDGETS[budget], force=True))
    return asdict(run_shuffled(shuffle_plan(plan), plan.data.test))


def render_seeds(stored: Stored) -> str:
    """A row for each model and task."""
    head = ["model", "task", "seeds", "kept", "dense accuracy, median", "circuit, median, worst", "size, median"]
    lines = [f"| {' | '.join(head)} |\n{'|---' * len(head)}|"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, run in stored.items():
        model, task, _ = json.loads(key)
        groups.setdefault((model, task), []).append(run)
    for (model, task), found in groups.items():
        runs = [run for run in found if "refused" not in run]
        if not runs:
            lines.append(f"| {model} | {task} | {len(found)} | all refused | | | |")
            continue
        accuracy = {side: sorted(run["test"][side]["accuracy"] for run in runs) for side in ("dense", "circuit")}
        sizes = sorted(1 - run["size"]["reduction"] for run in runs)
        dense, circuit, size = (values[len(values) // 2] for values in (*accuracy.values(), sizes))
        kept = f"{sum(map(is_kept, runs))}" + (f", {len(found) - len(runs)} refused" if len(runs) < len(found) else "")
        figures = f"{dense:.1%} | {circuit:.1%}, {accuracy['circuit'][0]:.1%} | {size:.1%}"
        lines.append(f"| {model} | {task} | {len(found)} | {kept} | {figures} |")
    return "\n".join(lines)


def render_shuffled(stored: Stored) -> str:
    """A row for each model, task and budget."""
    lines = [f"| model | task | budget | ends | chance | as it should |\n{'|---' * 6}|"]
    for key, found in stored.items():
        accuracy = found["accuracy"]
        ends = "refused as infeasible"
        if accuracy is not None:
            low, high = accuracy["ci95"]
            ends = f"{accuracy['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
        verdict = "yes" if accuracy is None or low <= found["chance"] else "no"
        lines.append(f"| {' | '.join(json.loads(key))} | {ends} | {found['chance']:.1%} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not stored yet, one after the other, each stored as soon as it is there; then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["seeds", "shuffled"])
    parser.add_argument("tasks", nargs="*", help="default: the built-in ones; of shuffled the example files, too")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seeds", type=int, default=20, help="0 to so many")
    parser.add_argument("--anew", action="store_true")
    given = parser.parse_args()
    tasks = given.tasks or [*TASKS, *(EXAMPLES if given.which == "shuffled" else ())]
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    stored: Stored = known.setdefault(given.which, {"runs": {}})["runs"]
    run: Callable[..., dict[str, Any]] = run_seed if given.which == "seeds" else run_shuffled_task
    for task in tasks:
        for third in range(given.seeds) if given.which == "seeds" else BUDGETS:
            key = json.dumps([given.model, task, third])
            if key in stored and not given.anew:
                continue
            stored[key] = run(given.model, task, third)
            known[given.which] |= {"machine": describe_machine(), "date": datetime.date.today().isoformat()}
            RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(key, json.dumps(stored[key]), flush=True)
    render = render_seeds if given.which == "seeds" else render_shuffled
    write_between(PAGE, f"<!-- results of {given.which} -->", END, render(stored))
    print(render(stored))


if __name__ == "__main__":
    main()
