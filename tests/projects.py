"""Another pytest, in a project of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from nursery import Nursery
from waits import HANG

import exporter

ROOT = Path(exporter.__file__).parent.parent
PLUGIN = "exporter.pytest_plugin"


def _name_plugin() -> tuple[str, ...]:
    """Nothing where the plugin comes as an installed package has it, else its name."""
    known = {entry.value for entry in entry_points(group="pytest11")}
    return () if PLUGIN in known else ("-p", PLUGIN)


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, in a process that imports all that it needs."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *_name_plugin(), *arguments], cwd=folder, capture_output=True, text=True,
        timeout=HANG, check=False, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
    )  # fmt: skip


FORKED = """
import pytest
os.chdir({folder!r})
code = pytest.main({arguments!r})
sys.stdout.flush()
os._exit(code)
"""


def fork_pytest(nursery: Nursery, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, in a process that has imported most of it."""
    first = FORKED.format(folder=str(folder), arguments=[*_name_plugin(), *arguments])
    return subprocess.CompletedProcess(arguments, *nursery.run((), first=first, PYTEST_ADDOPTS=""))
