"""Run the default job and what one could do instead on public data: `make public DATA=folder`.

The folder holds task files (.jsonl, .csv) made of data that others have published, which is not ours to hand on: no
sentence of it is written anywhere. What is stored in benchmarks/results/public.json is a list of figures, taken one by
one out of manifest and comparison; the table goes into docs/compare.md. `--lines N` learns from that many patching
lines only; both are rows of their own. What is stored of other files, models and lines stays. `--jobs FOLDER` takes
<task>.json, which the main job left there with the options below, instead of running it again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from main_job import ROOT, describe_machine, run_task, write_between

from exporter.studies.compare import CompareOptions, run_comparison
from exporter.studies.compare_record import Comparison
from exporter.tasks import SplitSizes

RESULTS = ROOT / "benchmarks" / "results" / "public.json"
PAGE = ROOT / "docs" / "compare.md"
START, END = "<!-- results of public data -->", "<!-- end of results -->"
OPTIONS = ["--preset", "deploy", "--teacher", "both", "--max-params", "5%", "--logits", "answers", "--vocab", "task"]
BASELINES = ("dense", "tfidf-logistic", "tfidf-svm", "embeddings")
KINDS = (".jsonl", ".csv")
SELECTION = 400  # prompts at most that say which circuit keeps the budget


def main() -> None:
    """Run what was asked for, then write the table of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of task files")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lines", type=int, help="patching lines to learn from (default: all)")
    parser.add_argument("--test-prompts", type=int, default=1000, help="at most")
    parser.add_argument("--baselines", default=",".join(BASELINES), help="contestants of export-circuit compare")
    parser.add_argument("--jobs", type=Path, help="a folder of manifests")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    files = sorted(path for path in given.folder.iterdir() if path.suffix in KINDS)
    if not files:
        raise SystemExit(f"{given.folder} has no task file; give a folder with some that end in {' or '.join(KINDS)}")
    stored: list[dict[str, Any]] = json.loads(given.results.read_text()) if given.results.exists() else []
    for path in files:
        key = {"task": path.name, "model": Path(given.model).name, "lines": given.lines}
        run = measure(path, given.model, given.lines, given.test_prompts, given.baselines.split(","), given.jobs)
        made = {"machine": describe_machine(), "date": datetime.date.today().isoformat()}
        stored = [other for other in stored if other["key"] != key] + [{"key": key, **made, **run}]
        stored.sort(key=lambda other: [str(value) for value in other["key"].values()])
        lines = ",\n".join(map(json.dumps, stored))  # a run a line
        given.results.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    write_between(given.page, START, END, render_table(stored))


def measure(
    path: Path, model: str, lines: int | None, n_test: int, baselines: list[str], jobs: Path | None
) -> dict[str, Any]:
    """One file's figures: of the job, and of each baseline on the same prompts."""
    sizes = SplitSizes(patching=lines, selection=SELECTION, test=n_test)
    options = [*OPTIONS, "--selection-prompts", str(SELECTION), "--test-prompts", str(n_test)]
    options += [] if lines is None else ["--patching-prompts", str(lines)]
    if jobs is None:
        with tempfile.TemporaryDirectory() as folder:
            manifest = run_task(model, str(path), options, Path(folder))
    else:
        manifest = json.loads((jobs / f"{path.stem}.json").read_text(encoding="utf-8"))
    compared = run_comparison(CompareOptions(str(path), model, tuple(baselines), prompts=sizes))
    if manifest["task"]["sha256"] != compared.key["prompts"]:
        raise SystemExit(f"{path.name}: the job and its baselines had other prompts; report this")
    return {"job": pick_figures(manifest), "baselines": pick_points(compared), "prompts": dict(compared.prompts)}


def pick_figures(manifest: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a manifest, each by name: prompts, answers, paths and notes hold what is others'."""
    circuit = manifest["circuit"]
    return {
        "prompts_sha256": manifest["task"]["sha256"],
        "model_sha256": manifest["model"]["sha256"],
        "heads": len(circuit["heads"]),
        "neurons": sum(map(len, circuit.get("neurons", {}).values())),
        "size": manifest["size"],
        "test": {name: manifest["test"][name] for name in ("n", "dense", "circuit", "kl", "agreement", "paired")},
        "unseen": {
            name: {side: found[side]["accuracy"] for side in ("dense", "circuit")}
            for name, found in manifest["ood"].items()
        },
        "latency": manifest["latency"],
        "file_bytes": max(file["bytes"] for file in manifest["files"].values()),
        "versions": manifest["versions"],
        "wall_seconds": manifest.get("wall_seconds"),  # not known of a job that was run before
        "peak_rss_gib": manifest.get("peak_rss_gib"),
    }


def pick_points(compared: Comparison) -> list[dict[str, Any]]:
    """Each system's figures, without its answers to single prompts."""
    return [
        {
            "contestant": point.contestant,
            "name": point.name,
            "accuracy": point.test.accuracy,
            "ci95": point.test.ci95,
            "parameters": point.parameters,
            "held": point.held,
            "latency_ms": point.latency_ms,
            "speedup": point.speedup,
        }
        for point in compared.points
    ]


def render_table(stored: list[dict[str, Any]]) -> str:
    """A row for each run: the circuit, the dense model, and each kind of baseline."""
    kinds = list(
        dict.fromkeys(p["contestant"] for run in stored for p in run["baselines"] if p["contestant"] != "dense")
    )
    head = ["task, model", "lines", "dense", "circuit [95 %]", "parameters", "latency, batch 1", "batch 32", *kinds]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    rows += [render_row(run, kinds) for run in stored]
    machines = {f"{run['machine']['cpu']}, {run['machine']['cores']} cores, {run['date']}" for run in stored}
    legend = "Accuracy in %; of baselines with the time of a call on one prompt. Lines: patching and selection lines"
    return "\n".join([*rows, "", f"{legend}. {'; '.join(sorted(machines))}."])


def render_row(run: dict[str, Any], kinds: list[str]) -> str:
    """One file, model and number of lines."""
    key, job, test = run["key"], run["job"], run["job"]["test"]
    low, high = test["circuit"]["ci95"]
    others = []
    for kind in kinds:
        points = [point for point in run["baselines"] if point["contestant"] == kind]
        best = max(points, key=lambda point: point["accuracy"], default=None)
        others.append("" if best is None else f"{100 * best['accuracy']:.1f} ({best['latency_ms']:.2g} ms)")
    cells = [
        f"{Path(key['task']).stem}, {key['model']}",
        f"{run['prompts']['patching'] + run['prompts']['selection']:,}",
        f"{100 * test['dense']['accuracy']:.1f}",
        f"{100 * test['circuit']['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{-100 * job['size']['reduction']:.1f} %",
        *(f"{1e3 * t['circuit']:.2f} ms ({t['speedup']:.1f} x)" for t in job["latency"]),
        *others,
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
