"""Write tables and plots from runs of the inference benchmarks: `python benchmarks/inference_results.py RUN.json ...`.

`make bench-results` measures and then calls this. RUN.json are what `pytest benchmarks/test_inference.py
--benchmark-json` wrote, in the order they ran; together they go to benchmarks/results/inference.json, and from that
come inference.md with the bars, the plots, and the table in README.md. Without arguments the latter are drawn anew.
"""

from __future__ import annotations

import json
import sys

from inference.bars import check_bars
from inference.plots import draw_all
from inference.records import read_runs
from inference.tables import render_bars, render_page, render_summary
from main_job import ROOT, write_between

FOLDER = ROOT / "benchmarks" / "results"
RESULTS = FOLDER / "inference.json"


def main() -> None:
    """Merge, write, and print the bars."""
    if sys.argv[1:]:
        RESULTS.write_text(json.dumps(read_runs(sys.argv[1:]), indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    bars = check_bars(results)
    (FOLDER / "inference.md").write_text(render_page(results, bars), encoding="utf-8")
    draw_all(results, FOLDER)
    write_between(
        ROOT / "README.md", "<!-- results of inference -->", "<!-- end of results -->", render_summary(results)
    )
    print(render_bars(bars))


if __name__ == "__main__":
    main()
