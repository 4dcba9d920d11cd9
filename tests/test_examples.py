"""The scripts in examples/ run as their docstrings say, on the bundled model, and stay short."""

from __future__ import annotations

from pathlib import Path

import pytest
from nursery import Nursery
from tiers import thin

ROOT = Path(__file__).parent.parent
# A script, its arguments, a file that it leaves, and what it says last.
RUNS = {
    "extract.py": (["--prompts", "12"], "model.onnx", "wrote model.onnx"),
    "own_task.py": (["--prompts", "16"], "years.jsonl", "held-out prompts"),
    "compare_circuits.py": (["--prompts", "12", "--alphas", "0.1"], "zero-0.1.json", "all circuits share: "),
}


def test_every_example_is_run() -> None:
    assert set(RUNS) == {script.name for script in (ROOT / "examples").glob("*.py")}


FORKED = """
import runpy
os.chdir({folder!r})
sys.argv = {command!r}
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("script", thin(RUNS, ["own_task.py"]))
def test_an_example_runs_in_a_folder_of_its_own(script: str, tmp_path: Path, nursery: Nursery) -> None:
    arguments, file, said = RUNS[script]
    command = [str(ROOT / "examples" / script), *arguments]
    code, out, err = nursery.run((), first=FORKED.format(folder=str(tmp_path), command=command))
    assert code == 0, err
    assert (tmp_path / file).stat().st_size > 0
    assert said in out.splitlines()[-1]


@pytest.mark.parametrize("script", RUNS)
def test_an_example_is_short(script: str) -> None:
    assert len((ROOT / "examples" / script).read_text(encoding="utf-8").splitlines()) < 60
