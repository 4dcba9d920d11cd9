"""Every decision of a search, on disk as soon as it is taken, so that a killed search can go on.

One JSON line a decision, synced; each line carries a hash over all lines before it. A last line
without its end was being written when the process died and is dropped; anything else that does not
fit is refused, as is the journal of another search: the first line says what it is of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from exporter.circuit import Decision, decision_from_json, decision_to_json
from exporter.errors import ExactnessError, InputError

_FORMAT = 1


def journal_path(out: Path) -> Path:
    """Where the journal of an output stands: `model.onnx.journal`."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """The decisions taken so far, and a file that takes more.

    `key` says what is searched (model, data, settings, versions). With `resume`, `decisions` is what an
    earlier process got to; without, the file starts anew. A clean end removes the file, and so do
    Ctrl-C, bad input and a failed exactness gate, but not with `resume`. Raises InputError on entering
    when the file is of another search or damaged.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.resume = resume
        self.decisions: list[Decision] = []
        self._key = dict(key)
        self._hash = ""
        self._file: int | None = None

    def __enter__(self) -> Journal:
        end = self._read() if self.resume and self.path.exists() else 0
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if end == 0:
                self._append({"journal": _FORMAT, "key": self._key})
        except BaseException as error:  # Ctrl-C and a full disk leave nothing behind, here as later
            self._close(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        """Close the file, and remove it where it has done its work or is not wanted."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        over = isinstance(error, KeyboardInterrupt | InputError | ExactnessError | OSError)
        if error is None or (over and not self.resume):
            self.path.unlink(missing_ok=True)

    def add(self, decision: Decision) -> None:
        """Append one decision; on return it is on disk."""
        self.decisions.append(decision)
        self._append(decision_to_json(decision))

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = self._seal(json.dumps(entry))
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)

    def _seal(self, text: str) -> str:
        """The line of an entry: its hash, over it and all before it, and the entry."""
        self._hash = hashlib.sha256(f"{self._hash}{text}".encode()).hexdigest()
        return f"{self._hash[:16]} {text}"

    def _read(self) -> int:
        """Take in an earlier process's lines; returns where the last whole one ends."""
        lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()  # empty where the last line is whole
        for number, line in enumerate(lines, start=1):
            text = line[17:].decode(errors="replace")
            if line != self._seal(text).encode():
                raise InputError(f"{self.path} is damaged in line {number}; remove it, or start over without --resume")
            entry = json.loads(text)
            if number == 1:
                self._check_header(entry)
            else:
                self.decisions.append(decision_from_json(entry))
        return self.path.stat().st_size - len(torn)

    def _check_header(self, found: Mapping[str, Any]) -> None:
        if found.get("journal") != _FORMAT:
            raise InputError(f"{self.path} is a journal of another version; start over without --resume")
        ours, theirs = self._key, found["key"]
        for name in sorted({*ours, *theirs}):
            if json.loads(json.dumps(ours.get(name))) != theirs.get(name):
                raise InputError(
                    f"{self.path} is of another search: its {name} is {theirs.get(name)!r}, this one's "
                    f"{ours.get(name)!r}; give the same options, or start over without --resume"
                )
