"""Write a whole folder as one: a set of files (see `files`) whose single member is a folder.

Where the file system cannot exchange two folders in one step, the old one is away for a moment; the next writer
finishes what a crash interrupted there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from exporter.errors import InputError
from exporter.files import OutputSet
from exporter.files.stage import Stage


class OutputFolder(OutputSet):
    """A folder whose files appear together: write to `files.folder`, then `files.commit()`.

    `is_replaceable` says of what a folder that stands there may be replaced with `force`; another one never is.
    """

    option = "--bundle"

    def __init__(self, out: str | Path, *, is_replaceable: Callable[[Path], bool], force: bool = False) -> None:
        super().__init__(out, suffixes=("",), force=force)
        self.is_replaceable = is_replaceable

    @property
    def folder(self) -> Path:
        """Where to write the files before `commit`; its name is already the final one."""
        assert self._stage is not None, "the set is not open"
        folder = self._stage.path / self.out.name
        folder.mkdir(exist_ok=True)
        return folder

    def __enter__(self) -> OutputFolder:
        super().__enter__()
        return self

    def path(self, suffix: str) -> Path:
        """The folder, as the set's single member."""
        return self.folder

    def target(self, suffix: str) -> Path:
        """Where the folder will be."""
        return self.out

    def owns(self, name: str) -> bool:
        """Whether this is the folder's own name."""
        return name == self.out.name

    def _staged_names(self, stage: Stage) -> list[str]:
        return [self.folder.name]

    def _check(self) -> None:
        if self.out.name in ("", ".."):
            raise InputError(f"the folder {str(self.out)!r} has no name of its own; choose another --bundle")
        if not self.out.parent.is_dir():
            raise InputError(f"no folder {str(self.out.parent)!r} to write {self.out.name} in; create it first")

    def _refuse_existing(self, names: Sequence[str]) -> None:
        stands = self._absolute
        if not os.path.lexists(stands) or (stands.is_dir() and not any(stands.iterdir())):
            return
        if not stands.is_dir() or not self.is_replaceable(stands):
            raise InputError(f"{self.out} exists and is no bundle, or holds other files too; choose another --bundle")
        if not self.force:
            raise InputError(f"{self.out} exists; give --force to replace it, or choose another --bundle")
