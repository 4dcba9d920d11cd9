"""Write a set of files as one: all of it is there afterwards, or what was there before.

The files are written into a hidden folder beside the target (see `stage`), synced, and renamed, the manifest last;
an old manifest leaves first, so that files of two sets never stand beside a manifest. A writer finishes what a
crash of an earlier one interrupted. Readers repair nothing: a file that has its final name is complete. Where two
files have to go together, the name of the second holds a hash of its content (`weights_name`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from exporter.errors import InputError
from exporter.files.entries import sync
from exporter.files.reading import check_name, open_regular
from exporter.files.signals import signals_deferred
from exporter.files.stage import Stage, check_stage, open_stage

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def weights_name(graph: str, content: Path) -> str:
    """The name for a file of weights beside a graph: `model-<hash>.onnx.data`, by what the file holds.

    So a graph that names it never meets the weights of another export, whatever stands beside it.
    """
    with open_regular(content) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{Path(graph).stem}-{digest[:16]}{Path(graph).suffix}.data"


def surgery_name(graph: str, sha256: str) -> str:
    """The name for the surgery that a graph was made by: `model-<hash>.surgery.safetensors`, by what it holds."""
    return f"{Path(graph).stem}-{sha256[:16]}.surgery.safetensors"


def is_weights_name(name: str, graph: str) -> bool:
    """Whether a file of this name can go with a graph of that name: its weights, or its surgery.

    Weights were called `model.onnx.data` once.
    """
    stem, suffix = re.escape(Path(graph).stem), re.escape(Path(graph).suffix)
    weights, surgery = rf"{stem}(-[0-9a-f]{{16}})?{suffix}\.data", rf"{stem}-[0-9a-f]{{16}}\.surgery\.safetensors"
    return re.fullmatch(f"{weights}|{surgery}", name) is not None


class OutputSet:
    """Files that appear together: `with OutputSet(out) as files: write to files.path(...); files.commit()`.

    `out` names the first file; the others have its name with another suffix, the manifest's last. Files of weights
    (see `weights_name`) that are written beside the first one go with the set. `optional` are suffixes of files that
    an older set may have had. Raises InputError on entering when
    the set cannot be written or, without `force`, when a file of it exists; later when space runs out. Leaving
    without `commit` leaves what was there before.
    """

    option = "--out"  # where the user says where to write

    def __init__(
        self,
        out: str | Path,
        *,
        suffixes: Sequence[str] = (".onnx", ".json"),
        optional: Sequence[str] = (),
        force: bool = False,
    ) -> None:
        self.out = Path(check_name(out))
        self.suffixes = tuple(suffixes)
        self.optional = tuple(optional)
        self.force = force
        self._absolute = self.out
        self._stage: Stage | None = None

    def path(self, suffix: str) -> Path:
        """Where to write the file with this suffix before `commit`; its name is already the final one."""
        assert suffix in self.suffixes, suffix
        assert self._stage is not None, "the set is not open"
        return self._stage.path / self.target(suffix).name

    def target(self, suffix: str) -> Path:
        """Where the file with this suffix will be."""
        return self.out.with_suffix(suffix)

    def owns(self, name: str) -> bool:
        """Whether a file of this name beside the output is of the set: no other one is ever replaced or removed."""
        suffixes = (*self.suffixes, *self.optional)
        return name in {self.target(suffix).name for suffix in suffixes} or is_weights_name(name, self.out.name)

    def check(self) -> None:
        """Raise InputError, and touch nothing, for a set that could not be written now."""
        with explain(self.out):
            self._resolve()
            self._refuse_existing(self._members())
            check_stage(self._absolute)

    def __enter__(self) -> OutputSet:
        try:
            with explain(self.out), signals_deferred():
                self._resolve()
                self._stage = open_stage(self._absolute, self.owns)
                if self._stage is None:
                    raise InputError(
                        f"another process is writing {self.out}; wait for it or choose another {self.option}"
                    )
                self._stage.recover()
                self._refuse_existing(self._members())
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError) and (error.errno in (*_NO_SPACE, errno.EFBIG) or self._is_ours(error)):
            raise _input_error(self.out, error) from error

    def commit(self, *, leaving: Sequence[str] = ()) -> None:
        """Put the files in place; `leaving` names files of the old set that go with it.

        Raises InputError, with the old files restored, when that fails.
        """
        assert self._stage is not None, "the set is not open"
        with explain(self.out):
            names = self._staged_names(self._stage)
            _sync_tree(self._stage.path)
            with signals_deferred():
                self._refuse_existing(names)
                self._stage.commit(names, leaving=[name for name in leaving if self.owns(name)])
                self._discard()

    def _staged_names(self, stage: Stage) -> list[str]:
        """What is to be put in place: weights first, which no graph that is there names, and the manifest last."""
        members = self._members()
        weights = [name for name in stage.names() if is_weights_name(name, self.out.name) and name not in members]
        return [*weights, *members]

    def _members(self) -> list[str]:
        return [self.target(suffix).name for suffix in self.suffixes]

    def _resolve(self) -> None:
        """Check the name, and make it absolute now: the working folder can be the one that is replaced."""
        self._check()
        self._absolute = Path(os.path.realpath(self.out.parent)) / self.out.name

    def _check(self) -> None:
        if self.out.suffix != self.suffixes[0]:
            raise InputError(f"the output {str(self.out)!r} must end in {self.suffixes[0]}")
        if not self.out.parent.is_dir():
            raise InputError(f"no folder {str(self.out.parent)!r} to write {self.out.name} in; create it first")

    def _refuse_existing(self, names: Sequence[str]) -> None:
        for name in names:
            beside, shown = self._absolute.with_name(name), self.out.with_name(name)
            if beside.is_dir():
                raise InputError(f"{shown} is a folder; choose another --out")
            if not self.force and os.path.lexists(beside):
                raise InputError(f"{shown} exists; give --force to replace it, or choose another --out")

    def _is_ours(self, error: OSError) -> bool:
        stage = self._absolute.with_name(f".{self.out.name}.partial")
        return isinstance(error.filename, str | Path) and stage in Path(error.filename).parents

    def _discard(self) -> None:
        """Remove the hidden folder and let go of the lock. A record that could not be carried out stays."""
        if self._stage is not None:
            with signals_deferred():
                self._stage.close(remove=True)
                self._stage = None


def _sync_tree(stage: Path) -> None:
    """Force everything in a folder to the disk, and the folder."""
    for folder, _, names in os.walk(stage, topdown=False):
        for path in (*(Path(folder) / name for name in names), Path(folder)):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def explain(out: Path) -> Iterator[None]:
    """Turn an OSError in the context into an InputError about the output."""
    try:
        yield
    except OSError as error:
        raise _input_error(out, error) from error


def _input_error(out: Path, error: OSError) -> InputError:
    if error.errno in _NO_SPACE:
        return InputError(f"no space left to write {out}; free some, or write elsewhere")
    with suppress(TypeError):  # an OSError without a number
        reason = os.strerror(error.errno)  # type: ignore[arg-type]  # errno is set here
        return InputError(f"cannot write {out}: {reason}; write elsewhere, or mend the folder {str(out.parent)!r}")
    return InputError(f"cannot write {out}: {error}")
