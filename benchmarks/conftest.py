"""Options of the inference benchmarks, and the workbench they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at import; nothing here is fetched from the hub

import pytest
from inference.blocks import Pace
from inference.cases import MOST
from inference.matrix import Comparison, plan_comparisons, plan_footprints
from inference.workbench import Workbench
from main_job import describe_machine

from exporter.graph.metadata import collect_versions

OPTIMUM = Path(__file__).parent.parent / ".venv-optimum" / "bin" / "python"
PACE = {"smoke": Pace(blocks=2, seconds=0.01, least=2, most=5, patience=1), "full": Pace()}
LARGEST = {"smoke": 8, "full": 32}  # the batch at which memory is measured


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size of a run, and where Optimum is."""
    parser.addoption("--size", choices=PACE, default="full", help="smoke: a tiny model, in seconds")
    parser.addoption("--cases", default="", help="names of cases, with commas between; default: all of the size")
    parser.addoption("--optimum-python", type=Path, default=OPTIMUM, help="an interpreter that has Optimum")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each contestant in each comparison, and for each file whose footprint is taken."""
    size = metafunc.config.getoption("--size")
    wanted = [name for name in metafunc.config.getoption("--cases").split(",") if name]

    def runs(case: str) -> bool:
        return not wanted or case in wanted

    if {"comparison", "contestant"} <= set(metafunc.fixturenames):
        pairs = [(c, name) for c in plan_comparisons(size) if runs(c.case) for name in c.contestants]
        ids = [f"{comparison.key}-{name}" for comparison, name in pairs]
        metafunc.parametrize(("comparison", "contestant"), pairs, ids=ids)
    if "filed" in metafunc.fixturenames:
        filed = [file for file in plan_footprints(size) if runs(file[0])]
        metafunc.parametrize("filed", filed, ids=["-".join(file) for file in filed])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The machine first, then case by case, so that each model is built once."""
    order = {case: place for place, case in enumerate(dict.fromkeys(filter(None, map(_case_of, items))))}
    items.sort(key=lambda item: order.get(_case_of(item), -1))


def _case_of(item: pytest.Item) -> str:
    params = getattr(getattr(item, "callspec", None), "params", {})
    if isinstance(comparison := params.get("comparison"), Comparison):
        return comparison.case
    return str(params["filed"][0]) if "filed" in params else ""


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the results say of the machine, beside what pytest-benchmark does."""
    machine_info["export_circuit"] = describe_machine() | {
        "versions": collect_versions(),
        "optimum": find_optimum(config.getoption("--optimum-python")) is not None,
    }


def find_optimum(python: Path) -> Path | None:
    """The interpreter, if it is there and has Optimum."""
    if not python.exists() and shutil.which(str(python)) is None:
        return None
    probe = subprocess.run([str(python), "-c", "import optimum.exporters.onnx"], capture_output=True)
    return python if probe.returncode == 0 else None


@pytest.fixture(scope="session")
def workbench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """The workbench of the run; its files are removed."""
    config = request.config
    with tempfile.TemporaryDirectory(prefix="export-circuit-bench-") as folder:
        bench = Workbench(
            Path(folder) / "case",
            optimum_python=find_optimum(config.getoption("--optimum-python")),
            pace=PACE[config.getoption("--size")],
        )
        bench.close()
        yield bench


@pytest.fixture
def largest(request: pytest.FixtureRequest) -> int:
    """The batch at which memory is measured."""
    size = LARGEST[request.config.getoption("--size")]
    assert size <= MOST
    return size


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether this is a run in seconds."""
    return bool(request.config.getoption("--size") == "smoke")
