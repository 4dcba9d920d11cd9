"""The fixture `circuit_benchmark` in a suite of its own, run by another pytest. No bar here depends on a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from nursery import Nursery
from projects import PLUGIN, ROOT, fork_pytest
from slow_down import plant_mlp
from tiny import make_model

from exporter.bench.baseline import Baseline
from exporter.graph.export import export_onnx

TEST = """
import pytest

@pytest.mark.parametrize("batch", [2, 3])
def test_latency(circuit_benchmark, batch):
    circuit_benchmark("circuit.onnx", against="dense.onnx", batch=batch, seconds=0.1, threads=1, {options})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """A folder with a test, two models, and a baseline that both batches reach by far; nobody changes it."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, n_layers in (("circuit", 1), ("dense", 4)):
        export_onnx(make_model(n_layers=n_layers).dense, folder / f"{name}.onnx")
    write_test(folder, 'baseline="baseline.json"')
    assert fork_pytest(nursery, folder, "--update-baseline").returncode == 0
    write_test(folder, 'baseline="baseline.json", max_regression="900%"')
    return folder


@pytest.fixture
def suite(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(made, tmp_path / "suite")


def write_test(folder: Path, options: str) -> None:
    (folder / "test_latency.py").write_text(TEST.format(options=options))


def test_it_is_registered_for_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"export-circuit": PLUGIN}


def test_loading_it_is_light() -> None:
    script = (
        f"import {PLUGIN}, sys; print([n for n in ('torch', 'numpy', 'onnx', 'scipy', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_run_writes_baselines_and_another_compares(suite: Path, nursery: Nursery) -> None:
    assert [record.batch for record in Baseline.load(suite / "baseline.json").batches] == [2, 3]
    before = (suite / "baseline.json").read_text()
    done = fork_pytest(nursery, suite, "--benchmark-json=found.json")
    assert done.returncode == 0, done.stdout
    assert (suite / "baseline.json").read_text() == before
    first, _ = json.loads((suite / "found.json").read_text())["benchmarks"]
    info = first["extra_info"]
    assert first["stats"]["rounds"] == 20
    assert (
        info["batch"] == 2
        and info["against"] == "baseline.onnx"
        and info["bar"] < info["speedup"]
        and len(info["ci95"]) == 2
    )
    assert info["circuit_nodes"] == Baseline.load(suite / "baseline.json").circuit.nodes
    only = fork_pytest(nursery, suite, "--benchmark-only")
    assert "2 passed" in only.stdout
    assert "2 skipped" in fork_pytest(nursery, suite, "--benchmark-skip").stdout


def test_a_missed_bar_fails_the_test_and_says_so(suite: Path, nursery: Nursery) -> None:
    write_test(suite, "min_speedup=1e6")
    done = fork_pytest(nursery, suite)
    assert done.returncode == 1
    assert "RegressionError: circuit.onnx: at batch 2 it is" in done.stdout
    assert "at least 1000000.00 is required" in done.stdout and "or --update-baseline" in done.stdout
    assert "bench_report.py" not in done.stdout  # the user's line alone


def test_a_bigger_graph_fails_also_where_nothing_is_timed(suite: Path, nursery: Nursery) -> None:
    plant_mlp(suite / "circuit.onnx", suite / "circuit.onnx", 500)
    write_test(suite, 'baseline="baseline.json"')
    (suite / "dense.onnx").unlink()  # not needed
    done = fork_pytest(nursery, suite, "--benchmark-disable")
    assert done.returncode == 1
    assert "circuit.onnx: it has" in done.stdout and "+10% allowed" in done.stdout
    write_test(suite, 'baseline="baseline.json", gate="time"')
    assert fork_pytest(nursery, suite, "--benchmark-disable").returncode == 0
    write_test(suite, "min_speedup=1e6")
    assert fork_pytest(nursery, suite, "--benchmark-disable").returncode == 0


def test_without_pytest_benchmark_it_says_what_is_missing(suite: Path, nursery: Nursery) -> None:
    done = fork_pytest(nursery, suite, "-p", "no:benchmark")
    assert done.returncode == 1
    assert "circuit_benchmark needs pytest-benchmark: pip install 'export-circuit[pytest]'" in done.stdout
    (suite / "test_latency.py").write_text("def test_other(): pass\n")
    assert fork_pytest(nursery, suite, "-p", "no:benchmark").returncode == 0


def test_errors_are_the_commands(suite: Path, nursery: Nursery) -> None:
    write_test(suite, 'baseline="no.json"')
    assert (
        "InputError: no baseline 'no.json'; write a new one with --update-baseline"
        in fork_pytest(nursery, suite).stdout
    )
    write_test(suite, 'max_regression="10"')
    assert "UsageError: '10' is no share" in fork_pytest(nursery, suite).stdout
    write_test(suite, 'baseline="baseline.json"')
    done = fork_pytest(nursery, suite, "--update-baseline", "--benchmark-disable")
    assert done.returncode == 1 and "UsageError: --update-baseline needs times" in done.stdout
