"""Open files that somebody else may have made: regular files only, of bounded size, without waiting.

What stands at a name can be a pipe that never gives a byte, a device without an end, or a folder. So a file is
opened without blocking, looked at through the open descriptor (a name can change its meaning between a check and
a use, a descriptor cannot), and only then read. Links are followed: hub caches are made of them.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from exporter.errors import ExportCircuitError, InputError

Value = TypeVar("Value")

_TRIES = 5  # of reading what is replaced meanwhile
MOST_TEXT = 64 << 20  # bytes of a manifest, a configuration, a circuit; real ones have less than one MiB


class IrregularFileError(InputError):
    """What stands at a name is no regular file, but of this `kind`."""

    def __init__(self, path: str | Path, kind: str) -> None:
        super().__init__(f"{path} is {kind}; give a regular file")
        self.kind = kind


def open_regular(path: str | Path, *, dir_fd: int | None = None, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; `dir_fd` is as in `os.open`, `follow=False` refuses a link in the last place.

    Raises InputError for a pipe, a device or a folder, OSError for what cannot be opened.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(check_name(path), flags, dir_fd=dir_fd)
    try:
        require_regular_mode(os.fstat(descriptor).st_mode, path)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_regular(path: str | Path) -> Path:
    """The path, for a library that opens files by name. Raises InputError unless a regular file stands there."""
    try:
        require_regular_mode(Path(check_name(path)).stat().st_mode, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return Path(path)


def read_bounded(path: str | Path, *, most: int = MOST_TEXT) -> bytes:
    """The bytes of a file of at most `most` bytes. Raises InputError for a larger one, OSError as `open_regular`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} has more than {most:,} bytes, and at most so many are read; give the right file")
    return content


def read_text(path: str | Path, *, most: int = MOST_TEXT) -> str:
    """The same as UTF-8 text; UnicodeDecodeError, which is a ValueError, where it is none."""
    return read_bounded(path, most=most).decode("utf-8")


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; ValueError where it is none or nested without bound, else as `read_bounded`."""
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text; ValueError where it is none, or nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_steadily(path: str | Path, read: Callable[[], Value]) -> Value:
    """What `read` gives, which reads the file at `path` and what belongs to it, all of one and the same export.

    A writer puts a new set in place of the old one; where that happens meanwhile, `read` is called again. Raises
    what `read` raises, InputError where the file is replaced each time.
    """
    for _ in range(_TRIES):
        before = _identify(path)
        try:
            value = read()
        except ExportCircuitError:
            if _identify(path) == before:
                raise
        else:
            if _identify(path) == before:
                return value
    raise InputError(f"{path} is replaced all the time while it is read; try again when its writer is done")


def _identify(path: str | Path) -> tuple[int, ...] | None:
    """Which file stands at a name; a file of ours is never changed in place."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_name(path: str | Path) -> str | Path:
    """The path itself. Raises InputError for a NUL, which no file name has."""
    if "\0" in str(path):
        raise InputError(f"the name {ascii(str(path))[:80]} holds a NUL; give a file's name")
    return path


def require_regular_mode(mode: int, path: str | Path) -> None:
    """Raise InputError unless `mode`, as `os.stat` gives it, is a regular file's."""
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    raise IrregularFileError(path, kinds.get(stat.S_IFMT(mode), "a device"))
