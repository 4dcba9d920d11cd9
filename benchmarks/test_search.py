"""Search time and peak memory, by shape, prompts and survivors, each in a fresh process (see search_case.py).

The plain hooked search is timed in the same process on a sample of the candidates of every third layer and
extrapolated to all of them; every sampled candidate must have the same KL as in the engine's trace, and what
was planted in the weights must be what is found. `make bench`; FULL=1 adds GPT-2 Medium's and Large's shapes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.tasks import TASKS

CASE = Path(__file__).parent / "search_case.py"
MAIN_JOB = Path(__file__).parent / "results" / "main_job.json"
SMALL = [
    ("small", "few", 100, 12),
    ("small", "few", 250, 0),
    ("small", "all-mlps", 100, 12),
]
FULL = [("medium", "few", 24, 6), ("large", "few", 24, 4)]
full = pytest.mark.skipif(not os.environ.get("FULL"), reason="minutes each; set FULL=1")


def run_case(*arguments: object) -> dict[str, Any]:
    """The figures of one case."""
    command = [sys.executable, str(CASE), *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.mark.parametrize(
    ("shape", "survivors", "prompts", "hooked"), [*SMALL, *(pytest.param(*case, marks=full) for case in FULL)]
)
def test_search(benchmark: Any, shape: str, survivors: str, prompts: int, hooked: int) -> None:
    arguments = ["--shape", shape, "--survivors", survivors, "--prompts", prompts, "--hooked", hooked]
    found = benchmark.pedantic(run_case, args=arguments, rounds=1)
    benchmark.extra_info |= found
    assert found["as_planted"]
    if hooked:
        assert found["largest_kl_difference"] <= 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_search_for_a_task(benchmark: Any, task: str) -> None:
    found = benchmark.pedantic(run_case, args=["--task", task], rounds=1)
    benchmark.extra_info |= found
    manifest = json.loads(MAIN_JOB.read_text(encoding="utf-8"))["bundled"]["tasks"][task]
    assert found["heads"] == len(manifest["circuit"]["heads"])
    assert found["mlps"] == len(manifest["circuit"]["mlps"])
