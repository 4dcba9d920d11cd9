"""Write a set of files as one: all of it is there afterwards, or what was there before.

The files are written into a hidden folder beside the target (`.model.onnx.partial`), synced, and renamed,
the manifest last; an old manifest leaves first, so that files of two sets never stand beside a manifest.
Renames are atomic one by one only, so a small record in the hidden folder says how to finish what a
crash interrupted: `recover` rolls forward (every new file was complete) or back (a rename had failed).
A lock, which the system releases when a process dies, tells a crash from a process at work.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from exporter.errors import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FORWARD, _BACK = ".forward", ".back"  # the record's file name is the direction: turning it needs no space


class OutputSet:
    """Files that appear together: `with OutputSet(out) as files: write to files.path(...); files.commit()`.

    `out` names the first file; the others have its name with another suffix, the manifest's last. Raises
    InputError on entering when the set cannot be written or, without `force`, when a file of it exists;
    later when space runs out. Leaving without `commit` leaves what was there before.
    """

    option = "--out"  # where the user says where to write

    def __init__(self, out: str | Path, *, suffixes: Sequence[str] = (".onnx", ".json"), force: bool = False) -> None:
        self.out = Path(out)
        self.suffixes = tuple(suffixes)
        self.force = force
        self._stage = _stage_of(self.out)
        self._lock: int | None = None

    def path(self, suffix: str) -> Path:
        """Where to write the file with this suffix before `commit`; its name is already the final one."""
        assert suffix in self.suffixes, suffix
        return self._stage / self.target(suffix).name

    def target(self, suffix: str) -> Path:
        """Where the file with this suffix will be."""
        return self.out.with_suffix(suffix)

    def __enter__(self) -> OutputSet:
        try:
            with _explain(self.out), _signals_deferred():
                self._check()
                recover(self.out)
                self._refuse_existing()
                self._lock = _lock(self._stage)
                if self._lock is None:
                    raise InputError(
                        f"another process is writing {self.out}; wait for it or choose another {self.option}"
                    )
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

    def commit(self) -> None:
        """Put the files in place. Raises InputError, with the old files restored, when that fails."""
        staged = [self.path(suffix) for suffix in self.suffixes]
        names = [path.name for path in staged]
        with _explain(self.out):
            inside = [path for folder in staged for path in folder.rglob("*")]
            for path in (*inside, *staged, self._stage):
                _sync(path)
            with _signals_deferred():
                self._refuse_existing()
                try:
                    _write_record(self._stage, names)
                    _roll_forward(self._stage, names)
                except OSError:
                    if (self._stage / _FORWARD).exists():
                        (self._stage / _FORWARD).replace(self._stage / _BACK)
                    _finish(self._stage)
                    raise
                _remove(self._stage)
                self._discard()

    def _check(self) -> None:
        if self.out.suffix != self.suffixes[0]:
            raise InputError(f"the output {str(self.out)!r} must end in {self.suffixes[0]}")
        if not self.out.parent.is_dir():
            raise InputError(f"no folder {str(self.out.parent)!r} to write {self.out.name} in; create it first")

    def _refuse_existing(self) -> None:
        for target in map(self.target, self.suffixes):
            if target.is_dir():
                raise InputError(f"{target} is a folder; choose another --out")
            if not self.force and os.path.lexists(target):
                raise InputError(f"{target} exists; give --force to replace it, or choose another --out")

    def _is_ours(self, error: OSError) -> bool:
        return isinstance(error.filename, str | Path) and self._stage in Path(error.filename).parents

    def _discard(self) -> None:
        """Remove the hidden folder and let go of the lock. A record that could not be carried out stays."""
        if self._lock is not None:
            with _signals_deferred():
                if not _has_record(self._stage):
                    _remove(self._stage)
                os.close(self._lock)
                self._lock = None


def recover(out: str | Path) -> None:
    """Finish what a killed process left of writing `out`; readers and writers call it first.

    Does nothing while another process is writing. Raises InputError when a half-renamed set cannot be
    finished, for instance in a folder that has become read-only.
    """
    stage = _stage_of(Path(out))
    with _explain(Path(out)):
        if not stage.is_dir():
            return
        try:
            with _signals_deferred():
                lock = _lock(stage)
                if lock is not None:
                    try:
                        _finish(stage)
                    finally:
                        os.close(lock)
        except OSError:
            if _has_record(stage):
                raise
            # What is left is rubbish that a reader may not be allowed to remove.


def _stage_of(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def _lock(stage: Path) -> int | None:
    """An open descriptor that holds the stage, or None when another process holds it."""
    path = stage / ".lock"
    while True:
        stage.mkdir(exist_ok=True)  # the process before us may have just removed it
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:  # some network file systems have no locks: go on without
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # we hold a file that the process before us has removed


def _write_record(stage: Path, names: Sequence[str]) -> None:
    """From here on the new set is decided. The record says which files take part and which existed."""
    existed = [name for name in names if os.path.lexists(stage.parent / name)]
    draft = stage / ".draft"
    draft.write_text(json.dumps({"names": list(names), "existed": existed}), encoding="utf-8")
    _sync(draft)
    draft.replace(stage / _FORWARD)
    _sync(stage)


def _has_record(stage: Path) -> bool:
    return (stage / _FORWARD).exists() or (stage / _BACK).exists()


def _finish(stage: Path) -> None:
    """Carry out the record, if there is one, and remove the stage. Safe to repeat after a crash in it."""
    if (stage / _BACK).exists():
        record = json.loads((stage / _BACK).read_text(encoding="utf-8"))
        _roll_back(stage, record["names"], record["existed"])
    elif (stage / _FORWARD).exists():
        _roll_forward(stage, json.loads((stage / _FORWARD).read_text(encoding="utf-8"))["names"])
    _remove(stage)


def _roll_forward(stage: Path, names: Sequence[str]) -> None:
    *others, manifest = (stage / name for name in names)
    folder = stage.parent
    if manifest.exists() and os.path.lexists(folder / manifest.name):
        (folder / manifest.name).replace(_backup(manifest))
    for staged in (*others, manifest):
        target = folder / staged.name
        if staged.exists():
            if os.path.lexists(target) and not os.path.lexists(_backup(staged)):
                _keep(target, _backup(staged))
            staged.replace(target)
    _sync(folder)


def _roll_back(stage: Path, names: Sequence[str], existed: Sequence[str]) -> None:
    for name in names:
        target, backup = stage.parent / name, _backup(stage / name)
        if os.path.lexists(backup):
            if backup.is_dir():  # a folder replaces no folder
                _delete(target)
            backup.replace(target)
        elif name not in existed and not (stage / name).exists():  # it is ours
            _delete(target)
    _sync(stage.parent)


def _delete(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _backup(staged: Path) -> Path:
    return staged.with_name(f"old-{staged.name}")


def _keep(target: Path, backup: Path) -> None:
    """A second name for the file, so that the first is replaced in one step and never missing."""
    try:
        backup.hardlink_to(target)
    except OSError:  # no hard links here: it is missing for a moment
        target.replace(backup)


def _remove(stage: Path) -> None:
    """Remove the stage, the record first: without it the rest is rubbish, whatever happens."""
    for record in (_FORWARD, _BACK):
        (stage / record).unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)


def _sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # not every file system can
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM take effect at the end of the context. They only ever interrupt the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = {}

    def remember(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, remember)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if pending:
            signal.raise_signal(pending[0])


@contextmanager
def _explain(out: Path) -> Iterator[None]:
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
