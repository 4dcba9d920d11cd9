"""The hidden folder beside an output in which its new files wait: `.model.onnx.partial`.

It is one writer's: the folder itself is locked (the system lets go of the lock when the process dies). What is
done in it and beside it goes through two open folders, never through a name that somebody could turn into a link.

Moving a set of files into place is many renames, so a *record* says how to finish it after a crash: forward (every
new file was complete), or back (a rename had failed). Only the next writer of the same output carries a record out,
and only one that this user's own writer must have left here: a plain file of this user, that names this very folder
and these very files by their inode numbers (those in an archive or a copy have others), and no file but those of the
output's own set.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from exporter.errors import InputError
from exporter.files.entries import delete, exchange, is_numbered, is_same, read_status, sync
from exporter.files.reading import open_regular
from exporter.files.record import BACK, FORWARD, MOST_RECORD, Record

_DRAFT = ".draft"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OLD = "old-"
_TRIES = 100  # each fails when another writer removes its folder between our mkdir and our lock
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


class Stage:
    """An open, locked hidden folder beside `out`; `open_stage` makes it.

    `owns` says of a name whether it is of the output's own set: no other name is ever touched beside the stage.
    """

    def __init__(self, out: Path, folder: int, descriptor: int, owns: Callable[[str], bool]) -> None:
        self.path = out.with_name(stage_name(out.name))
        self.owns = owns
        self._folder = folder  # the open parent
        self._inside = descriptor  # the open stage; it holds the lock

    def names(self) -> list[str]:
        """What is in it, sorted."""
        return sorted(os.listdir(self._inside))  # noqa: PTH208  # of a descriptor

    def exists(self, name: str) -> bool:
        """Whether something, if only a dangling link, has this name beside the stage."""
        return read_status(name, self._folder) is not None

    def commit(self, names: Sequence[str], *, leaving: Sequence[str] = ()) -> None:
        """Put these into place in this order, the last being the manifest, and take `leaving` away with the old set.

        Everything is synced first. Raises OSError, with what was there before restored.
        """
        assert all(map(self.owns, (*names, *leaving))), names
        record = Record(
            stage=os.fstat(self._inside).st_ino,
            folder=os.fstat(self._folder).st_ino,
            new={name: os.stat(name, dir_fd=self._inside, follow_symlinks=False).st_ino for name in names},
            leaving=[name for name in leaving if name not in names and self.exists(name)],
        )
        try:
            self._write(record)
            self._roll_forward(record)
        except OSError:
            if read_status(FORWARD, self._inside) is not None:
                self._rename_record(FORWARD, BACK)
                self._roll_back(record)
                self.clear()
            raise
        self.clear()

    def recover(self) -> None:
        """Finish what a killed writer left, and empty the stage. Safe to repeat after a crash in it.

        Raises InputError for a record that is not this user's about this folder: it is not carried out, and what
        waits beside it is not thrown away either.
        """
        for name in (BACK, FORWARD):
            if read_status(name, self._inside) is not None:
                record = self._read(name)
                if record is None:
                    raise InputError(
                        f"{self.path} holds what an interrupted write left, of another place, user or version; it is "
                        "not carried out: look into the folder, and remove it"
                    )
                (self._roll_back if name == BACK else self._roll_forward)(record)
                break
        self.clear()

    def clear(self) -> None:
        """Remove everything in it, the record first: what is left after a crash is then nobody's to put in place."""
        for name in (FORWARD, BACK):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._inside)
        for name in self.names():
            delete(name, self._inside)

    def close(self, *, remove: bool) -> None:
        """Let go of the lock; with `remove` the folder goes too, unless it holds a record that was not carried out."""
        if remove and all(read_status(name, self._inside) is None for name in (FORWARD, BACK)):
            with suppress(OSError):
                self.clear()
                if is_same(self.path.name, self._folder, self._inside):
                    os.rmdir(self.path.name, dir_fd=self._folder)
        for descriptor in (self._inside, self._folder):
            os.close(descriptor)

    def _write(self, record: Record) -> None:
        """Write the record, first under another name. When it has its own, a crash is finished forward."""
        descriptor = os.open(
            _DRAFT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._inside
        )
        try:
            os.write(descriptor, json.dumps(asdict(record)).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._rename_record(_DRAFT, FORWARD)
        sync(self._inside)

    def _rename_record(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._inside, dst_dir_fd=self._inside)

    def _read(self, name: str) -> Record | None:
        """The record, if this user wrote it, here and about these two folders and about names of the output's own."""
        try:
            with open_regular(name, dir_fd=self._inside, follow=False) as file:
                status = os.fstat(file.fileno())
                record = Record.parse(file.read(MOST_RECORD))
        except (InputError, OSError):
            return None
        if record is None or status.st_uid != os.geteuid() or status.st_nlink != 1:
            return None
        places = (os.fstat(self._inside).st_ino, os.fstat(self._folder).st_ino)
        if (record.stage, record.folder) != places or not all(map(self.owns, (*record.new, *record.leaving))):
            return None
        is_whole = all(self._waits(new, record) or self._is_in_place(new, record) for new in record.new)
        return record if is_whole or name == BACK else None

    def _roll_forward(self, record: Record) -> None:
        """Move the new files into place. An old manifest leaves first: it never stands beside files of two sets."""
        manifest = list(record.new)[-1]
        if len(record.new) > 1 and self._waits(manifest, record) and self.exists(manifest):
            self._move(manifest, _OLD + manifest)
        for name in record.new:
            if self._waits(name, record):
                self._put(name)
        for name in record.leaving:
            if self.exists(name):
                self._move(name, _OLD + name)
        sync(self._folder)

    def _roll_back(self, record: Record) -> None:
        """Put the old files back, and remove the new ones that were in place already."""
        for name in (*record.new, *record.leaving):
            is_new = name in record.new and self._is_in_place(name, record)
            if read_status(_OLD + name, self._inside) is not None:
                if is_new:  # a folder replaces no folder
                    delete(name, self._folder)
                os.rename(_OLD + name, name, src_dir_fd=self._inside, dst_dir_fd=self._folder)
            elif is_new and read_status(name, self._inside) is not None:  # they had been exchanged
                exchange(self._inside, self._folder, name)
            elif is_new:
                delete(name, self._folder)
        sync(self._folder)

    def _waits(self, name: str, record: Record) -> bool:
        """Whether the new file of this name is still in the stage, and not the old one that it was exchanged with."""
        return is_numbered(read_status(name, self._inside), record.new[name])

    def _is_in_place(self, name: str, record: Record) -> bool:
        return is_numbered(read_status(name, self._folder), record.new[name])

    def _put(self, name: str) -> None:
        """Move one entry into place, so that the name is never without one where the file system allows it."""
        status = read_status(name, self._folder)
        if status is not None and read_status(_OLD + name, self._inside) is None:
            if stat.S_ISDIR(status.st_mode):
                if exchange(self._inside, self._folder, name):
                    return
                self._move(name, _OLD + name)
            else:
                self._keep(name)
        os.rename(name, name, src_dir_fd=self._inside, dst_dir_fd=self._folder)

    def _keep(self, name: str) -> None:
        """A second name for the old file, so that the first is replaced in one step and never missing."""
        try:
            os.link(name, _OLD + name, src_dir_fd=self._folder, dst_dir_fd=self._inside, follow_symlinks=False)
        except OSError:  # no hard links here: it is missing for a moment
            self._move(name, _OLD + name)

    def _move(self, name: str, kept: str) -> None:
        os.rename(name, kept, src_dir_fd=self._folder, dst_dir_fd=self._inside)


def stage_name(name: str) -> str:
    """The hidden folder's name for an output's."""
    return f".{name}.partial"


def open_stage(out: Path, owns: Callable[[str], bool]) -> Stage | None:
    """The stage of an output, made and locked; None where another process holds it.

    `out` is an absolute path. Raises InputError where something else has the stage's name (a link, a file, another
    user's folder), OSError where nothing can be made there.
    """
    folder = os.open(out.parent, _FOLDER)
    try:
        inside = _make_and_lock(out, folder)
    except BaseException:
        os.close(folder)
        raise
    if inside is None:
        os.close(folder)
        return None
    return Stage(out, folder, inside, owns)


def check_stage(out: Path) -> None:
    """Raise, and touch nothing, what `open_stage` would raise now; another process may hold it until then."""
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out.parent))
    try:
        status = out.with_name(stage_name(out.name)).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _in_the_way(out, "no folder")
    if status.st_uid != os.geteuid():
        raise _in_the_way(out, "another user's")


def _make_and_lock(out: Path, folder: int) -> int | None:
    """The open stage, which exists when this returns; None where another process holds it."""
    name = stage_name(out.name)
    for _ in range(_TRIES):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        try:
            inside = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            continue  # the writer before us has just removed it
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _in_the_way(out, "no folder") from error
            raise
        try:
            if os.fstat(inside).st_uid != os.geteuid():
                raise _in_the_way(out, "another user's")
            if not _lock(inside):
                os.close(inside)
                return None
            if is_same(name, folder, inside):
                return inside
        except (OSError, InputError):
            os.close(inside)
            raise
        os.close(inside)  # we hold a folder that the writer before us has removed
    raise _in_the_way(out, "replaced all the time")


def _in_the_way(out: Path, what: str) -> InputError:
    stage = out.with_name(stage_name(out.name))
    return InputError(f"{stage} is needed to write {out.name}, and is {what}; remove it, or write elsewhere")


def _lock(inside: int) -> bool:
    """Lock an open folder; False where another process holds it."""
    try:
        fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks: go on without
        if error.errno not in _NO_LOCKS:
            raise
    return True
