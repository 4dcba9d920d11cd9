"""The paper's protocol: 12 alphas x 5 seeds, mean and zero ablation, MLPs searched and kept: `make paper-sweep`.

One sweep for each task that is named, on the bundled checkpoint or another model. Its whole file stays in
build/paper-sweep; the table goes to benchmarks/results/paper_sweep.json and docs/sweeps.md, the curves to docs/curves.
A sweep that was interrupted goes on where it was; its time is then that of the last run, and is left out of the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from main_job import ROOT, describe_machine, write_between

from exporter.cli.sweep import SHOWN, count_cores
from exporter.search.journal import journal_path
from exporter.studies.points import Point
from exporter.studies.run import SweepResult, run_sweep
from exporter.studies.summary import average_points
from exporter.studies.sweep import PAPER_ALPHAS, Sweep

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "paper_sweep.json", ROOT / "docs" / "sweeps.md"
CURVES, BUILD = ROOT / "docs" / "curves", ROOT / "build" / "paper-sweep"
START, END = "<!-- results of the paper's sweep -->", "<!-- end of results -->"


def main() -> None:
    """Run what was asked for, then write the page's tables of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="names of built-in tasks, or data files")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--workers", type=int, default=count_cores())
    given = parser.parse_args()
    stored: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for task in given.tasks:
        run = run_protocol(task, given.model, given.workers)
        stored = [other for other in stored if other["name"] != run["name"]] + [run]
        stored.sort(key=lambda run: str(run["name"]))
        RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, stored)) + "\n]\n", encoding="utf-8")
    write_between(PAGE, START, END, "\n\n".join(map(render_run, stored)))


def run_protocol(task: str, model: str, workers: int) -> dict[str, Any]:
    """The paper's sweep of one task, with its table, its areas and what it took."""
    BUILD.mkdir(parents=True, exist_ok=True)
    CURVES.mkdir(exist_ok=True)
    name = f"{Path(task).stem}-{Path(model).name}"
    out = BUILD / f"{name}.json"
    resumed = journal_path(out).exists()
    sweep = Sweep(task, model, PAPER_ALPHAS, ablations=("mean", "zero"), mlps=(True, False), force=True)
    start = time.perf_counter()
    result = run_sweep(sweep, out, workers=workers, resume=True, on_point=report)
    seconds = time.perf_counter() - start
    for suffix in (".svg", ".png"):
        shutil.copy(out.with_suffix(suffix), CURVES)
    made = {"machine": describe_machine(), "date": datetime.date.today().isoformat(), "workers": workers}
    return {"name": name, **made, "seconds": None if resumed else round(seconds), **summarise(result)}


def report(point: Point, done: int, total: int) -> None:
    """A line for each point."""
    print(f"{done} of {total}: {point.settings}, {point.figures['size']:.1%} of the size", flush=True)


def summarise(result: SweepResult) -> dict[str, Any]:
    """What the page shows of a sweep."""
    return {
        "task": result.task["name"],
        "model": result.model["name"],
        "points": len(result.points),
        "dense": sum(p.figures["dense"]["accuracy"] for p in result.points) / len(result.points),
        "rows": [asdict(row) for row in average_points(result.points)],
        "areas": [area for area in result.areas if area["metric"] in SHOWN],
    }


def render_run(run: dict[str, Any]) -> str:
    """A sweep's curves and tables in Markdown."""
    took = "" if run["seconds"] is None else f" in {run['seconds'] / 60:.1f} minutes"
    machine = f"{run['machine']['cpu']}, {run['workers']} workers of {run['machine']['cores']} cores, {run['date']}"
    title = f"{run['task']} on {run['model']}"
    head = ["alpha", "heads", "MLPs", "size", "accuracy", "KL"]
    parts = [f"### {title}", f"![{title}: alpha against size, size against accuracy](curves/{run['name']}.svg)"]
    parts.append(f"{run['points']} points{took}; dense accuracy {run['dense']:.1%}. {machine}.")
    for ablation, mlps in dict.fromkeys((row["ablation"], row["mlps"]) for row in run["rows"]):
        rows = [render_row(r) for r in run["rows"] if (r["ablation"], r["mlps"]) == (ablation, mlps)]
        parts.append(f"{ablation.capitalize()} ablation, MLPs {mlps}:")
        parts.append("\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]))
    areas = [
        f"| {a['ablation']} | {a['mlps']} | {a['metric']} | {a['cpr']:.3f} ± {a['cpr_std']:.3f} | "
        f"{a['cmd']:.3f} ± {a['cmd_std']:.3f} |"
        for a in run["areas"]
    ]
    return "\n\n".join([*parts, "\n".join(["| ablation | MLPs | measure | CPR | CMD |", "|" + "---|" * 5, *areas])])


def render_row(row: dict[str, Any]) -> str:
    """One alpha: means over seeds, and standard deviations."""
    forms = {"heads": ".1f", "mlps_kept": ".1f", "size": ".1%", "accuracy": ".1%", "kl": ".3f"}
    cells = [f"{row[name]['mean']:{form}} ± {row[name]['std']:{form}}" for name, form in forms.items()]
    return f"| {row['alpha']:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
