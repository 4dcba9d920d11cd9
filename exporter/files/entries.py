"""Entries of open folders: look at one, remove it, exchange it, force it to the disk.

A folder is given as an open descriptor and never as a path, so that nobody can turn a part of the path into a link
in between; of an entry that is a link, the link is meant and not what it leads to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def read_status(name: str, folder: int) -> os.stat_result | None:
    """The status of an entry; None where there is no such entry."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_numbered(status: os.stat_result | None, number: int) -> bool:
    """Whether an entry has this inode number. We write no links: one may have got the number of a file that is gone."""
    return status is not None and status.st_ino == number and not stat.S_ISLNK(status.st_mode)


def is_same(name: str, folder: int, descriptor: int) -> bool:
    """Whether the entry of this name is what the descriptor was opened from."""
    status = read_status(name, folder)
    return status is not None and os.path.samestat(status, os.fstat(descriptor))


def delete(name: str, folder: int) -> None:
    """Remove an entry of an open folder; a link is removed, never what it leads to."""
    status = read_status(name, folder)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def exchange(inside: int, folder: int, name: str) -> bool:
    """Exchange the entries of one name in two open folders, in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    encoded = os.fsencode(name)
    if rename(inside, encoded, folder, encoded, _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), name)


def sync(descriptor: int) -> None:
    """Force an open file, or an open folder's entries, to the disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # not every file system can
            raise
