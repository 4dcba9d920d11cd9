"""Commands that only read figures or run a bundle load neither torch nor transformers, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import EVEN, make_bundle, to_text
from manifests import DATA
from waits import HANG

HEAVY = {"torch", "transformers"}
CODE = (
    "import sys; from exporter.__main__ import run_command; code = run_command(sys.argv[1:]); "
    f"sys.exit(code or ' '.join({HEAVY} & set(sys.modules)) or 0)"
)


def run_lightly(*arguments: object) -> str:
    """What the command prints; fails with the names of the heavy packages that it has loaded."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("light") / "b", heads=EVEN).folder


def test_a_report_is_made_of_a_manifest_alone(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(DATA))
    assert "wrote" in run_lightly("report", tmp_path / "m.json")
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "the third letter of a three-word acronym" in page


def test_help_is_light() -> None:
    assert "--task" in run_lightly("--help")


def test_a_file_is_inspected_lightly(folder: Path) -> None:
    assert "circuit" in run_lightly("inspect", folder / "model.onnx")


def test_a_bundle_is_run_lightly(folder: Path) -> None:
    assert run_lightly("run", folder, to_text([3, 1, 4]), "--max-new-tokens", 2)
