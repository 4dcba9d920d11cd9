"""Node and npm's packages for the tests of what is exported for JavaScript, where both are."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from waits import HANG

JS = Path(__file__).parent / "js"
MODULES = JS / "node_modules"


def require_modules() -> Path:
    """The folder of npm's packages; skips the test without it."""
    if not (MODULES / "@huggingface/transformers/package.json").is_file():
        pytest.skip("npm's packages are not here: make node-modules")
    return MODULES


def run_pipelines(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls of Transformers.js' pipelines in Node: `folder`, `task`, `texts`, and where given `dtype`, `options`.

    Of each what it gave, with the dtype that it took, or its error. Skips the test without Node or npm's packages.
    """
    require_modules()
    if (node := shutil.which("node")) is None:
        pytest.skip("Node is not here")
    command = [node, "pipeline.mjs"]
    done = subprocess.run(
        command, cwd=JS, input=json.dumps(list(calls)), capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
