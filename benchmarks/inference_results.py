"""Write tables and plots from runs of the inference benchmarks: `python benchmarks/inference_results.py RUN.json ...`.

`make bench-results` measures and then calls this. RUN.json are what `pytest benchmarks/test_inference.py
--benchmark-json` wrote, in the order they ran; together they go to benchmarks/results/inference.json, and from that
come inference.md with the bars, the plots, and the table in docs/benchmarks.md. Without arguments these are drawn anew;
`--gate` first makes the circuits' files in reduced precision once more, holds them against the main job's gate, and
takes out the figures of those that it refuses (the benchmark itself does so too, since it has that gate).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from inference.bars import check_bars
from inference.blocks import Pace
from inference.matrix import CONTESTANTS
from inference.plots import draw_all
from inference.records import read_runs
from inference.runners import UnavailableError
from inference.tables import render_bars, render_page, render_summary
from inference.workbench import Workbench
from main_job import PAGE, ROOT, write_between

FOLDER = ROOT / "benchmarks" / "results"
RESULTS = FOLDER / "inference.json"


def drop_refused(results: dict[str, Any]) -> dict[str, Any]:
    """The results without the records of files that the main job would not leave; prints what they are."""
    refused = set()
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(Path(folder) / "files", optimum_python=None, pace=Pace())
        for name in results["cases"]:
            case = bench.case(name)
            if case.test is None:  # random weights: no task, no gate
                continue
            measured = {r["contestant"] for r in results["latency"] if (r["case"], r["provider"]) == (name, "cpu")}
            for contestant in sorted(measured):
                who = CONTESTANTS["cpu"][contestant]
                if who.dense or who.precision == "fp32" or not who.in_onnx:
                    continue
                try:
                    bench.file(case, who)
                except UnavailableError as error:
                    print(f"{name}, {who.label}: {error}", flush=True)
                    refused.add((name, contestant, "cpu"))
    kept = {
        kind: [r for r in results[kind] if (r["case"], r["contestant"], r["provider"]) not in refused]
        for kind in ("latency", "footprint")
    }
    return results | kept


def main() -> None:
    """Merge, write, and print the bars."""
    runs = [name for name in sys.argv[1:] if name != "--gate"]
    results = read_runs(runs) if runs else json.loads(RESULTS.read_text(encoding="utf-8"))
    if "--gate" in sys.argv[1:]:
        results = drop_refused(results)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    bars = check_bars(results)
    (FOLDER / "inference.md").write_text(render_page(results, bars), encoding="utf-8")
    draw_all(results, FOLDER)
    write_between(
        PAGE,
        "<!-- results of inference -->",
        "<!-- end of results -->",
        render_summary(results),
    )
    print(render_bars(bars))


if __name__ == "__main__":
    main()
