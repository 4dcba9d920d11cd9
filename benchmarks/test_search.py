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

CASE = Path(__file__).parent / "search_case.py"
SMALL = [
    ("small", "few", 100, 12),
    ("small", "few", 250, 0),
    ("small", "all-mlps", 100, 12),
]
FULL = [("medium", "few", 100, 4), ("large", "few", 50, 3)]
full = pytest.mark.skipif(not os.environ.get("FULL"), reason="minutes each; set FULL=1")


@pytest.mark.parametrize(
    ("shape", "survivors", "prompts", "hooked"), [*SMALL, *(pytest.param(*case, marks=full) for case in FULL)]
)
def test_search(benchmark: Any, shape: str, survivors: str, prompts: int, hooked: int) -> None:
    command = [
        sys.executable, str(CASE), "--shape", shape, "--survivors", survivors, "--prompts", str(prompts),
        "--hooked", str(hooked),
    ]  # fmt: skip

    def run() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found

    found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= found
    assert found["as_planted"]
    if hooked:
        assert found["largest_kl_difference"] <= 1e-5
