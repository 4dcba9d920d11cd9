"""Run `export-circuit compare` on tasks and write a table and a plot of each into docs/compare: `make compare-results`.

A comparison that is there already is gone on with: what it has is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exporter.studies.compare import CompareOptions, run_comparison
from exporter.studies.compare_record import Comparison, Point, judge

FOLDER = Path(__file__).parent.parent / "docs" / "compare"


def main() -> None:
    """Compare on every task that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help="names, or task files")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--only", default="", help="contestants, with commas")
    given = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for task in given.tasks:
        out = FOLDER / f"{Path(task).stem}-{Path(given.model).name}.json"
        only = tuple(filter(None, given.only.split(",")))
        found = run_comparison(CompareOptions(task, given.model, only, out=out), on_point=lambda p: print(p.name))
        out.with_suffix(".md").write_text(render(found, out), encoding="utf-8")
        print(f"wrote {out.with_suffix('.md')}")


def render(found: Comparison, out: Path) -> str:
    """A page: who wins, the table, the plot, how it was measured."""
    unseen = list(dict.fromkeys(name for point in found.points for name in point.unseen))
    sets = [f"{name}, %" for name in ("test", *unseen)]
    head = ["", *sets, "parameters", "held in all", "ms", "of dense", "made in s"]
    rows = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    rows += ["| " + " | ".join(_row(point, unseen)) + " |" for point in found.points]
    notes = [f"{name}: {result.note}." for name, result in found.results.items() if result.note]
    machine, key = found.machine, found.key
    measured = (
        f"{machine['processor']}, {key['threads']} threads, {machine['date']}; batch 1, median of alternating blocks. "
        f"Networks: {found.form}."
    )
    budgets = [f"- {point.name}: {point.budget}" for point in found.points]
    parts = [
        f"# {key['task']} on {key['model']}", "\n".join(judge(found.points)), "\n".join(rows),
        f"![accuracy against size and latency]({out.with_suffix('.svg').name})", *notes, measured,
        "Budgets:", "\n".join(budgets),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(point: Point, unseen: list[str]) -> list[str]:
    low, high = point.test.ci95
    others = [f"{100 * point.unseen[name].accuracy:.1f}" if name in point.unseen else "" for name in unseen]
    return [
        point.name, f"{100 * point.test.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]", *others,
        f"{point.parameters:,}", f"{point.held:,}", f"{point.latency_ms:.3g}", f"{point.speedup:.2f} x",
        f"{point.seconds:.1f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
