"""A sweep: its points are the circuits of single jobs, and a kill or the number of workers changes no byte of it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiers import THOROUGH

from exporter.circuit import load_circuit
from exporter.errors import InputError, UsageError
from exporter.job.options import Job
from exporter.job.plan import prepare
from exporter.job.run import search_plan
from exporter.search.rules import Budget
from exporter.studies import run as runs
from exporter.studies.points import Bench, Point, find_like, is_like, share_decisions
from exporter.studies.run import run_sweep
from exporter.studies.summary import COLUMNS
from exporter.studies.sweep import Sweep, read_budgets
from exporter.studies.workers import _choose_next
from exporter.tasks import SplitSizes

SIZES = SplitSizes(patching=8, selection=8, test=8)
ALPHAS = (1e-4, 0.003, 0.5)
FILES = ("s.csv", "s.json", "s.png", "s.svg")


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> str:
    return str(make_checkpoint(n_layer=3, n_head=2, initializer_range=0.2))


@pytest.fixture(scope="module")
def sweep(model: str) -> Sweep:
    return Sweep("acronym", model, ALPHAS, seeds=2, ablations=("mean", "zero"), mlps=(True, False), sizes=SIZES)


@pytest.fixture(scope="module")
def whole(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(sweep, folder / "s.json")
    return folder


def read_points(folder: Path) -> list[Point]:
    return [Point.from_json(entry) for entry in json.loads((folder / "s.json").read_text())["points"]]


def test_points_are_the_circuits_of_single_jobs(sweep: Sweep, whole: Path) -> None:
    points, jobs = read_points(whole), sweep.jobs()
    assert [point.number for point in points] == list(range(24)) and len(jobs) == 24
    assert len({point.circuit for point in points}) > 4  # the alphas make a difference
    for number in (0, 1, 2, 10, 23) if THOROUGH else (2, 10, 23):
        found = search_plan(prepare(jobs[number]), {})
        assert (points[number].circuit, points[number].record) == (found.circuit, found.record)


def test_a_search_shares_the_decisions_that_its_alpha_takes_too(sweep: Sweep, whole: Path) -> None:
    points, jobs = read_points(whole), sweep.jobs()
    first, last = points[0].record.trace, points[2].record.trace
    shared = share_decisions(0.5, first)
    assert shared == last[: len(shared)] and len(shared) < len(last)
    differs = first[len(shared)]
    assert not differs.removed and differs.kl_without - differs.kl_before < 0.5  # kept by 1e-4, and not by 0.5
    assert share_decisions(1e-4, first) == first
    assert find_like(jobs[2], points[:2]) in points[:2]
    assert find_like(jobs[3], points[:3]) is None  # another search


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(
    sweep: Sweep, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = replace(sweep, seeds=1, ablations=("mean",))  # six points
    whole = tmp_path_factory.mktemp("six")
    run_sweep(sweep, whole / "s.json")

    class Killed(BaseException):
        """What leaves the journal, as SIGKILL does."""

    made: list[int] = []
    make_point = Bench.make_point

    def count(bench: Bench, number: int, *rest: Any) -> Point:
        made.append(number)
        return make_point(bench, number, *rest)

    def kill(point: Point, done: int, total: int) -> None:
        if done == 4:
            raise Killed

    monkeypatch.setattr(Bench, "make_point", count)
    with pytest.raises(Killed):
        run_sweep(sweep, tmp_path / "s.json", on_point=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["s.json.journal"]
    with pytest.raises(InputError, match=r"is of another search: its alphas is .*; give the same options, or start"):
        run_sweep(replace(sweep, alphas=(0.5,)), tmp_path / "s.json", resume=True)
    run_sweep(sweep, tmp_path / "s.json", resume=True)
    assert made == list(range(6))  # each once
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(model: str, tmp_path: Path) -> None:
    """By the command, which asks MKL for sums that do not depend on how memory is aligned."""
    options = ["--task", "acronym", "--model", model, "--alphas", "0.0001,0.003,0.5", "--seeds", "2"]
    options += ["--ablation", "mean,zero", "--mlps", "both"]
    options += [word for name in ("patching", "selection", "test") for word in (f"--{name}-prompts", "8")]
    for workers in ("1", "2"):
        (tmp_path / workers).mkdir()
        out = ["--out", str(tmp_path / workers / "s.json"), "--workers", workers]
        subprocess.run([sys.executable, "-m", "exporter", "sweep", *options, *out], check=True, capture_output=True)
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_table_has_a_line_for_each_point(whole: Path) -> None:
    rows = list(csv.DictReader((whole / "s.csv").read_text().splitlines()))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 24
    first, point = rows[0], read_points(whole)[0]
    told = (first["point"], first["seed"], first["ablation"], first["mlps"], first["alpha"], first["budget"])
    assert told == ("0", "0", "mean", "searched", "0.0001", "")
    assert float(first["size"]) == point.figures["size"] and int(first["heads"]) == len(point.circuit.heads)
    assert float(first["selection_kl"]) == point.record.kl and float(first["test_kl"]) == point.figures["test"]["kl"]
    kept = next(row for row in rows if row["mlps"] == "kept")
    assert kept["mlps_kept"] == "3"


def test_a_point_is_exported_by_one_command(run: Run, model: str, whole: Path, tmp_path: Path) -> None:
    point, out = read_points(whole)[5], tmp_path / "m.onnx"
    circuit = f"{whole / 's.json'}#5"
    assert load_circuit(circuit) == (point.circuit, point.record)
    sizes = ("--patching-prompts", 8, "--selection-prompts", 8, "--test-prompts", 8)
    run.succeeds("--task", "acronym", "--model", model, "--circuit", circuit, "--out", out, "--quiet", *sizes)
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert manifest["circuit"] == json.loads(json.dumps(point.circuit.to_json() | point.record.to_json()))
    assert manifest["test"]["metrics"]["kl"] == pytest.approx(point.figures["test"]["kl"], rel=1e-5)
    assert manifest["size"]["circuit"] == point.figures["parameters"]


def test_points_that_are_none_are_refused(whole: Path, tmp_path: Path) -> None:
    for name in ("s.json", "s.json#24", "s.json#99999"):
        with pytest.raises(InputError, match=r"give a point of the sweep by its number, sweep.json#0 to sweep.json#23"):
            load_circuit(whole / name)
    (tmp_path / "c.json").write_text('{"heads": [], "mlps": []}')
    with pytest.raises(InputError, match="is no sweep, and has no points"):
        load_circuit(f"{tmp_path / 'c.json'}#0")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Healing of a few steps."""
    from exporter.search import rounds

    for name in ("LEAST_ROUND", "MOST_ROUND", "MOST_STEPS"):
        monkeypatch.setattr(rounds, name, 2)


@pytest.mark.usefixtures("brief")
def test_budgets_and_the_command_that_repeats_a_healed_point(run: Run, model: str, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    sizes = ("--patching-prompts", 8, "--selection-prompts", 8, "--test-prompts", 8)
    said = run.succeeds(
        "sweep", "--task", "acronym", "--model", model, "--budgets", "max-params=60%,max-params=40%", "--seeds", 1,
        "--workers", 1, "--out", out, *sizes,
    )  # fmt: skip
    points = read_points(tmp_path)
    assert [point.settings["budget"] for point in points] == [{"max_params": "60%"}, {"max_params": "40%"}]
    assert [p.figures["size"] <= share for p, share in zip(points, (0.6, 0.4), strict=True)] == [True, True]
    command = f"export-circuit --task acronym --model {model} --out model.onnx --max-params 60%"
    assert points[0].command.startswith(command) and points[0].command in said.replace("\n", " ")
    with pytest.raises(InputError, match=r"the point is healed, .*; make it again: export-circuit --task acronym"):
        load_circuit(f"{out}#0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alphas", "0.1,x"), "--alphas is '0.1,x'; give numbers with commas"),
        (("--alphas", "0.1,0.1"), "alphas has a value twice"),
        (("--alphas", "0"), "--alpha is 0.0; give a threshold above 0"),
        (("--budgets", "speed=9"), "--budgets has 'speed=9'; give bounds"),
        (("--budgets", "max-kl=1", "--alphas", "0.1"), "over --alphas or over --budgets"),
        (("--ablation", "mean,noise"), "--ablation has 'noise'; choose from mean, zero"),
        (("--out", "sweep.csv"), "give a name that ends in .json"),
        (("--seeds", "1000"), "the sweep has 12,000 points; at most 10,000"),
        (("--task", "nothing"), "unknown task 'nothing'"),
        ((), "--out is missing"),
    ],
)
def test_bad_options(run: Run, options: tuple[str, ...], message: str) -> None:
    task = () if "--task" in options else ("--task", "acronym")
    run.fails(2, message, "sweep", "--model", "bundled", *task, *options)


def test_a_sweep_checks_what_python_gives() -> None:
    for options, message in (
        ({}, "over alphas or over budgets; give one"),
        ({"alphas": (0.1,), "mlps": ()}, "has no points"),
        ({"budgets": (Budget(max_latency_ms=1.0),)}, "no latency budget"),
    ):
        with pytest.raises(UsageError, match=message):
            Sweep("acronym", **options)  # type: ignore[arg-type]
    assert read_budgets("--budgets", "max-kl=0.5, min-accuracy=-1pt") == (Budget(max_kl=0.5), Budget("-1pt"))


def test_a_dry_run_counts_the_points(run: Run, model: str) -> None:
    options = ("--ablation", "mean,zero", "--mlps", "both", "--dry-run")
    said = run.succeeds("sweep", "--task", "acronym", "--model", model, *options)
    assert said.startswith("240 points: 12 alphas x 5 seeds x 2 ablations x 2 treatments of MLPs")


def test_without_matplotlib_nothing_is_searched(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr(runs, "Bench", None)
    message = r"the curves need matplotlib.*pip install 'export-circuit\[compare\]'"
    run.fails(6, message, "sweep", "--task", "acronym", "--model", model, "--out", tmp_path / "s.json")


def test_a_job_of_a_point_is_one_that_a_user_gives(sweep: Sweep, model: str) -> None:
    assert sweep.jobs()[1] == Job("acronym", None, model, alpha=0.003, sizes=SIZES)


def test_points_that_share_decisions_are_not_computed_at_once(sweep: Sweep) -> None:
    """Else what a point has to go on from would depend on which worker is faster."""
    jobs = dict(enumerate(sweep.jobs()))
    n = len(sweep.alphas)
    assert is_like(jobs[0], jobs[n - 1]) and not is_like(jobs[0], jobs[n])
    assert _choose_next([1, 2, n, n + 1], jobs, [jobs[0]]) == n
    assert _choose_next([1, 2], jobs, [jobs[0]]) is None
    assert _choose_next([1, 2], jobs, []) == 1
