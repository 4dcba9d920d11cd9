"""Every decision or size of a search, on disk as soon as it is taken, so that a killed search can be resumed.

The first line is a header with the search's key (model, data, settings, versions); each entry is one more JSON
line, followed by fsync. A line starts with 16 hex digits of a SHA-256 chained over all entries up to its own. A last
line without a line feed was cut off by a crash, and is dropped. Any other damage is refused, and so is the journal of
another search. A path that holds something else (a link, a pipe, another file) is neither written nor removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from exporter.errors import ExactnessError, InputError
from exporter.files.reading import parse_json, require_regular_mode
from exporter.search.weights import WeightFiles

Entry = TypeVar("Entry")

_FORMAT = 1
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MOST, _MOST_HEADER = 1 << 30, 1 << 16  # bytes
_BEGINNING = re.compile(rb'[0-9a-f]{16} \{"journal": \d')
_TORN = re.compile(rb'[0-9a-f]{0,15}|[0-9a-f]{16} ?|[0-9a-f]{16} \{("(j(o(u(r(n(a(l("(: ?)?)?)?)?)?)?)?)?)?)?')


def journal_path(out: Path) -> Path:
    """The path of an output's journal: `model.onnx.journal` beside `model.onnx`."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """A context manager: the entries so far, and the open file that new ones are appended to.

    `key` identifies the search (model, data, settings, versions). With `resume`, `entries` starts with those of
    the existing file; without, the file is emptied. Leaving without an error removes the file. Without `resume`, so
    does leaving with KeyboardInterrupt, InputError, ExactnessError or OSError. `weights` are files that entries tell
    of; they go with it. On entering, raises InputError: the path holds no journal, or, with `resume`, a damaged one
    or that of another search.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, resume: bool) -> None:
        # absolute: the working directory may be a bundle folder, which is replaced before this file is removed
        self.path = Path(os.path.realpath(path.parent)) / path.name
        self.resume = resume
        self.entries: list[Any] = []
        self.weights = WeightFiles(self.path)
        self._key = dict(key)
        self._hash = ""
        self._file: int | None = None

    def check(self) -> None:
        """Raise what entering would raise, without changing the disk; enter another Journal afterwards."""
        if (descriptor := self._open_existing()) is not None:
            self._file = descriptor
            try:
                if self.resume:
                    self._read()
            finally:
                os.close(descriptor)
                self._file = None

    def __enter__(self) -> Journal:
        self._file = self._open_existing()
        if self._file is None:
            self._file = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            end = self._read() if self.resume else 0
            if os.fstat(self._file).st_size > end:
                os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if end == 0:
                self._append({"journal": _FORMAT, "key": self._key})
            if not self.entries:
                self.weights.keep(())
        except BaseException as error:  # after Ctrl-C or a full disk, no file stays behind
            self._close(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(error)

    def _open_existing(self) -> int | None:
        """A descriptor of the existing file, or None. Raises InputError, and writes nothing, if it is no journal.

        A file with several hard links is refused: writing would change the content under its other names.
        """
        try:
            descriptor = os.open(self.path, _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM):
                raise self._refusal("cannot be opened as a file of its own") from error
            raise
        try:
            status = os.fstat(descriptor)
            require_regular_mode(status.st_mode, self.path)
            if status.st_uid != os.geteuid() or status.st_nlink != 1:
                raise self._refusal("is another user's" if status.st_nlink == 1 else "has other names (hard links)")
            beginning, _, rest = os.pread(descriptor, _MOST_HEADER, 0).partition(b"\n")
            is_whole = self.resume and rest  # `_read` checks the hashes of a file with a complete first line
            if not (is_whole or _BEGINNING.match(beginning) or _TORN.fullmatch(beginning)):
                raise self._refusal("is no journal of a search")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _refusal(self, what: str) -> InputError:
        return InputError(f"{self.path} {what}, and is left as it is; move it away, or write to another place")

    def _close(self, error: BaseException | None) -> None:
        """Close the file, and remove it after a clean end or, without `resume`, after an expected error."""
        if self._file is None:
            return
        over = isinstance(error, KeyboardInterrupt | InputError | ExactnessError | OSError)
        goes = (error is None or (over and not self.resume)) and self._is_at_its_name(self._file)
        os.close(self._file)
        self._file = None
        if goes:
            self.path.unlink(missing_ok=True)
            self.weights.keep(())

    def _is_at_its_name(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one entry; returns after fsync. Raises OSError."""
        self.entries.append(entry)
        self._append(entry)

    def parse(self, read: Callable[[Any], Entry]) -> list[Entry]:
        """What `read` makes of each entry. Raises InputError: it refuses one."""
        values = []
        for number, entry in enumerate(self.entries, start=2):
            try:
                values.append(read(entry))
            except (ValueError, TypeError, AttributeError, KeyError, InputError) as error:
                raise self._damage(number) from error
        return values

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = self._seal(json.dumps(entry))
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)

    def _seal(self, text: str) -> str:
        """The line of an entry: 16 hex digits of the chained hash, a space, the entry."""
        self._hash = hashlib.sha256(f"{self._hash}{text}".encode()).hexdigest()
        return f"{self._hash[:16]} {text}"

    def _read(self) -> int:
        """Read and check the existing lines; returns the offset in bytes at which the last complete line ends."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size > _MOST:
            raise self._refusal(f"has {size >> 20} MiB, which no journal has")
        lines = os.pread(self._file, size, 0).split(b"\n")
        torn = lines.pop()  # empty where the last line is whole
        for number, line in enumerate(lines, start=1):
            text = line[17:].decode(errors="replace")
            if line != self._seal(text).encode():
                raise self._damage(number)
            try:
                entry = parse_json(text)
                if number == 1:
                    self._check_header(entry)
                else:
                    self.entries.append(entry)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise self._damage(number) from error
        return size - len(torn)

    def _damage(self, line: int) -> InputError:
        return InputError(f"{self.path} is damaged in line {line}; remove it, or start over without --resume")

    def _check_header(self, found: Any) -> None:
        if not isinstance(found, Mapping) or found.get("journal") != _FORMAT:
            raise InputError(f"{self.path} is a journal of another version; start over without --resume")
        if not isinstance(found.get("key"), Mapping):
            raise self._damage(1)
        ours, theirs = self._key, found["key"]
        searches = [key.get("search", "greedy") for key in (theirs, ours)]
        if searches[0] != searches[1]:
            raise InputError(
                f"{self.path} is of a {searches[0]} search, and this one is {searches[1]}; give the same options, or "
                "start over without --resume"
            )
        if ours.get("arithmetic") != theirs.get("arithmetic"):
            raise InputError(
                f"{self.path} is of a version that computed KL otherwise, so its decisions do not go with this one's; "
                "start over without --resume"
            )
        for name in sorted({*ours, *theirs}):
            if json.loads(json.dumps(ours.get(name))) != theirs.get(name):
                raise InputError(
                    f"{self.path} is of another search: its {name} is {theirs.get(name)!r}, this one's "
                    f"{ours.get(name)!r}; give the same options, or start over without --resume"
                )
