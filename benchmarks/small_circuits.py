"""Run the gradual search on tasks and seeds, and write the table of docs/small-circuits.md: `make small-results`.

Manifests go to benchmarks/results/small_circuits.json, by model, task and seed, with the machine they ran on; what is
there of other models, tasks and seeds stays. A short table goes into the README. The tables have medians over seeds
and the worst accuracy. `--heal none` goes into rows of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from main_job import ROOT, describe_machine, run_task, write_between

RESULTS = ROOT / "benchmarks" / "results" / "small_circuits.json"
PAGE, README = ROOT / "docs" / "small-circuits.md", ROOT / "README.md"
START, END = "<!-- results of small circuits -->", "<!-- end of results -->"
OPTIONS = ["--preset", "deploy", "--logits", "answers", "--vocab", "task"]


def main() -> None:
    """Run what was asked for, then write the table of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help="names, or files of the example tasks")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seeds", type=int, default=1, help="0 to so many")
    parser.add_argument("--heal", choices=["distil", "refit", "none"], default="distil")
    given = parser.parse_args()
    stored: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for task in given.tasks:
        for seed in range(given.seeds):
            key = {"model": given.model, "task": task, "heal": given.heal, "seed": seed}
            with tempfile.TemporaryDirectory() as folder:
                options = [*OPTIONS, "--heal", given.heal, "--seed", str(seed)]
                manifest = run_task(given.model, task, options, Path(folder))
            made = {"machine": describe_machine(), "date": datetime.date.today().isoformat()}
            stored = [run for run in stored if run["key"] != key] + [{"key": key, **made, "manifest": manifest}]
            stored.sort(key=lambda run: [str(value) for value in run["key"].values()])
            lines = ",\n".join(map(json.dumps, stored))  # circuits with a thousand neurons: a run a line
            RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    write_between(PAGE, START, END, render_table(stored))
    write_between(README, START, END, render_short(stored))


def render_table(stored: list[dict[str, Any]]) -> str:
    """A row for each model, task and way of healing."""
    head = [
        "model", "task", "heal", "seeds", "parameters", "heads, neurons", "dense accuracy", "circuit accuracy, worst",
        "unseen", "KL", "latency, batch 1", "batch 32", "whole job",
    ]  # fmt: skip
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in stored:
        key = run["key"]
        groups.setdefault((key["model"], key["task"], key["heal"]), []).append(run["manifest"])
    machines = {f"{run['machine']['cpu']}, {run['machine']['cores']} cores, {run['date']}" for run in stored}
    rows = [render_row(*key, runs) for key, runs in groups.items()]
    return "\n".join(
        [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, "", f"{'; '.join(sorted(machines))}."]
    )


def render_short(stored: list[dict[str, Any]]) -> str:
    """The README's table: healed circuits, medians over seeds and the worst."""
    rows = ["| model, task | parameters | accuracy, dense to circuit (worst) | latency |", "|" + "---|" * 4]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in stored:
        if run["key"]["heal"] == "distil":
            groups.setdefault(f"{run['key']['model']}, {run['key']['task']}", []).append(run["manifest"])
    for name, runs in groups.items():
        accuracy = {side: [100 * run["test"][side]["accuracy"] for run in runs] for side in ("dense", "circuit")}
        median = statistics.median
        cells = [
            name,
            f"{-100 * median(run['size']['reduction'] for run in runs):.1f} %",
            f"{median(accuracy['dense']):.1f} to {median(accuracy['circuit']):.1f} % ({min(accuracy['circuit']):.1f})",
            f"1/{median(run['latency'][0]['speedup'] for run in runs):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    machines = {f"{run['machine']['cpu']}, {run['machine']['cores']} cores" for run in stored}
    return "\n".join([*rows, "", f"{'; '.join(sorted(machines))}."])


def render_row(model: str, task: str, heal: str, runs: list[dict[str, Any]]) -> str:
    """Medians over seeds."""

    def median(read: Any) -> float:
        return statistics.median(read(run) for run in runs)

    def accuracy(side: str) -> list[float]:
        return [run["test"][side]["accuracy"] for run in runs]

    def neurons(run: dict[str, Any]) -> int:
        return sum(len(units) for units in run["circuit"].get("neurons", {}).values())

    unseen = ", ".join(
        f"{name} {median(lambda r, n=name: r['ood'][n]['circuit']['accuracy']):.1%} "
        f"(dense {median(lambda r, n=name: r['ood'][n]['dense']['accuracy']):.1%})"
        for name in runs[0]["ood"]
    )
    times = [
        f"{median(lambda r, i=i: 1e3 * r['latency'][i]['circuit']):.2f} ms "
        f"({median(lambda r, i=i: r['latency'][i]['speedup']):.1f} x)"
        for i in (0, 1)
    ]
    cells = [
        model, task, heal, str(len(runs)),
        f"{-median(lambda r: r['size']['reduction']):.1%}",
        f"{median(lambda r: len(r['circuit']['heads'])):.0f}, {median(neurons):.0f}",
        f"{statistics.median(accuracy('dense')):.1%}",
        f"{statistics.median(accuracy('circuit')):.1%}, {min(accuracy('circuit')):.1%}",
        unseen,
        f"{median(lambda r: r['test']['kl']):.3f}",
        *times,
        f"{median(lambda r: r['wall_seconds']):.0f} s, {median(lambda r: r['peak_rss_gib']):.1f} GiB",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
