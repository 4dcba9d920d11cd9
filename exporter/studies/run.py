"""Run a sweep: every point once, each in the journal as soon as it is there, and the whole written as one set of files.

A sweep that is killed goes on with `resume` where it was: the points in its journal are not computed again. The journal
is that of a search, and of the same rules: one of other inputs is refused, or without `resume` replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from exporter.checks import require_type, take_integer
from exporter.errors import UsageError
from exporter.files import OutputSet
from exporter.graph.metadata import collect_versions
from exporter.job.plan import Plan, hash_sets
from exporter.metrics.divergence import ARITHMETIC
from exporter.search.journal import Journal, journal_path
from exporter.studies.curves import draw_curves, require_matplotlib
from exporter.studies.points import Bench, Point
from exporter.studies.summary import compute_areas_by_seed, write_csv
from exporter.studies.sweep import Sweep
from exporter.studies.workers import run_points

_SCHEMA = 1

OnPoint = Callable[[Point, int, int], None]
"""Called with each point that was computed, the number of points so far, and that of all points."""


@dataclass(frozen=True)
class SweepResult:
    """A sweep's points by number, with CPR and CMD; `task` and `model` name what was swept."""

    task: dict[str, Any]
    model: dict[str, Any]
    grid: dict[str, Any]
    points: tuple[Point, ...]
    areas: list[dict[str, Any]]

    def to_json(self) -> str:
        """The sweep's file: a JSON object, with one line for each point."""
        head = {"sweep": _SCHEMA, "task": self.task, "model": self.model, **self.grid, "versions": collect_versions()}
        lines = [json.dumps(point.to_json()) for point in self.points]
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        areas = ",\n".join(map(json.dumps, self.areas))
        return (
            "{" + ",\n".join([*fields, f'"areas": [\n{areas}\n]', '"points": [\n' + ",\n".join(lines) + "\n]"]) + "}\n"
        )


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    workers: int = 1,
    resume: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_point: OnPoint | None = None,
) -> SweepResult:
    """Compute all points; write `out` (.json) and beside it a CSV and the curves as SVG and PNG, all or none.

    workers: processes, each with one thread; the files are the same whatever their number. resume: go on from the
    journal beside `out`. on_plan: called with the first seed's plan. Raises UsageError: a name without .json;
    MissingRuntimeError: no matplotlib; InputError: what a job raises, or a file that cannot be read or written.
    """
    require_type("sweep", sweep, Sweep)
    take_integer("workers", workers, least=1)
    require_matplotlib()
    jobs = dict(enumerate(sweep.jobs()))
    with _name_outputs(out, force=sweep.force) as files:
        bench = Bench(jobs[0])
        plan = bench.plan(jobs[0])
        if on_plan is not None:
            on_plan(plan)
        with Journal(journal_path(out), _make_key(sweep, bench), resume=resume) as journal:
            points = journal.parse(Point.from_json)
            for point in run_points(jobs, tuple(points), workers=workers, bench=cache(lambda: bench)):
                journal.add(point.to_json())
                points.append(point)
                if on_point is not None:
                    on_point(point, len(points), len(jobs))
            result = _gather(sweep, plan, points)
            files.path(".json").write_text(result.to_json(), encoding="utf-8")
            files.path(".csv").write_text(write_csv(result.points), encoding="utf-8")
            title = f"{plan.data.task} on {plan.model.name}, {sweep.seeds} seed{'s' * (sweep.seeds > 1)}"
            draw_curves(result.points, title, [files.path(".svg"), files.path(".png")])
            files.commit()
    return result


def check_sweep(sweep: Sweep, out: Path | None) -> Plan:
    """The plan of the first point, as a dry run: raises what `run_sweep` would before the first search."""
    require_matplotlib()
    if out is not None:
        _name_outputs(out, force=sweep.force).check()
    job = sweep.jobs()[0]
    return Bench(job).plan(job)


def _name_outputs(out: Path, *, force: bool) -> OutputSet:
    """The set of files, of which `out` is the manifest and so comes last. Raises UsageError."""
    if out.suffix != ".json":
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in .json")
    return OutputSet(out.with_suffix(".csv"), suffixes=(".csv", ".svg", ".png", ".json"), force=force)


def _make_key(sweep: Sweep, bench: Bench) -> dict[str, Any]:
    """What the points depend on, for the journal; a seed's prompts are known by their hash."""
    seeds = {job.seed: job for job in sweep.jobs()}
    return {
        "search": "sweep",
        "model": bench.model.sha256,
        "task": sweep.task,
        "prompts": [hash_sets(bench.plan(job).data) for job in seeds.values()],
        **sweep.to_json(),
        "arithmetic": ARITHMETIC,
        "versions": collect_versions(),
    }


def _gather(sweep: Sweep, plan: Plan, points: list[Point]) -> SweepResult:
    ordered = tuple(sorted(points, key=lambda point: point.number))
    task = {"name": plan.data.task, "parameters": plan.data.parameters}
    return SweepResult(
        task, plan.model_info.model_dump(mode="json"), sweep.to_json(), ordered, compute_areas_by_seed(ordered)
    )
