"""Folders and disks: what is in them, a strike at any file operation, a mount for a while."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.errors import InputError

# The file operations of exporter.files, as (module, name): a test counts them and strikes at each.
OPERATIONS = [
    (os, "open"), (os, "close"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "link"), (os, "unlink"),
    (os, "mkdir"), (os, "rmdir"), (fcntl, "flock"), (shutil, "rmtree"),
]  # fmt: skip


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def entries(folder: Path) -> set[str]:
    """The names in the folder, hidden ones too."""
    return {path.name for path in folder.iterdir()}


@contextmanager
def striking(at: int, strike: Callable[[], None]) -> Iterator[list[int]]:
    """Calls `strike` before and after the file operations, at the `at`-th such moment; yields [moments so far]."""
    moments = [0]

    def tick() -> None:
        moments[0] += 1
        if moments[0] == at:
            strike()

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            tick()
            result = function(*args, **kwargs)
            tick()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in OPERATIONS:
            patch.setattr(module, name, watched(getattr(module, name)))
        yield moments


def in_child(work: Callable[[], object]) -> int:
    """Wait status of a forked process that does the work; its exit code is 0, or 3 for an InputError."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except InputError:
            code = 3
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount at the folder for the length of the context; skips where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    if not shutil.which("mount"):
        pytest.skip("no mount command here")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
