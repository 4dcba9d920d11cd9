"""Files of tensors beside a journal, named by what they hold: `model.onnx.journal-<16 hex digits>.safetensors`.

A file is written under another name, synced and renamed, so that what has its final name is whole. Ours is a plain
file with one name, of this user, that begins as `pack` has it begin. What else stands at such a name (a link, a pipe,
a file of the user's) is neither followed nor overwritten nor removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from exporter.errors import InputError
from exporter.files.entries import sync
from exporter.files.reading import open_regular

_BEGINNING = b'{"__metadata__":{"network":"1"}'  # after 8 bytes with the length of the header
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class WeightFiles:
    """The files of one journal; they are named by the SHA-256 of their bytes."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._name = re.compile(rf"{re.escape(journal.name)}-[0-9a-f]{{16}}\.safetensors")
        self._draft = journal.with_name(f"{journal.name}.partial")

    def write(self, tensors: Mapping[str, Tensor]) -> str:
        """Write a file, unless it is there already, and return its SHA-256; returns after fsync.

        Raises InputError where something else has its name, OSError.
        """
        content = pack(tensors)
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._path(sha256)
        if os.path.lexists(path):
            if not _is_ours(path):
                raise _refusal(path)
            if _hash(path) == sha256:
                return sha256
        self._remove(self._draft)
        try:
            descriptor = os.open(self._draft, _FLAGS, 0o644)
        except FileExistsError as error:
            raise _refusal(self._draft) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._draft.rename(path)
        except BaseException:  # after Ctrl-C or on a full disk, no half of a file stays
            self._draft.unlink(missing_ok=True)
            raise
        self._sync_folder()
        return sha256

    def read(self, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file. Raises InputError: it is missing, or damaged."""
        path = self._path(sha256)
        try:
            with open_regular(path, follow=False) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    file.seek(0)
                    return safetensors.torch.load(file.read())
        except FileNotFoundError as error:
            raise InputError(f"{path}, which the journal names, is missing; start over without --resume") from error
        except (OSError, InputError, SafetensorError, ValueError) as error:
            raise InputError(f"cannot read {path} ({error}); start over without --resume") from error
        raise InputError(f"{path} is damaged; start over without --resume")

    def keep(self, needed: Collection[str]) -> None:
        """Remove every file of ours but those with these SHA-256."""
        names = {self._path(sha256).name for sha256 in needed}
        with suppress(FileNotFoundError, PermissionError):  # a folder that may be written and not listed
            for path in sorted(self.journal.parent.iterdir()):
                if self._name.fullmatch(path.name) and path.name not in names:
                    self._remove(path)
        self._remove(self._draft)

    def _path(self, sha256: str) -> Path:
        return self.journal.with_name(f"{self.journal.name}-{sha256[:16]}.safetensors")

    def _remove(self, path: Path) -> None:
        if _is_ours(path):
            path.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        folder = os.open(self.journal.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync(folder)
        finally:
            os.close(folder)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; the same bytes for the same tensors."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return safetensors.torch.save(whole, metadata={"network": "1"})


def _is_ours(path: Path) -> bool:
    """Whether a file is one that we wrote, or began to write: then it may be empty."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            return False
        with open_regular(path, follow=False) as file:
            return status.st_size == 0 or file.read(8 + len(_BEGINNING))[8:] == _BEGINNING
    except (OSError, InputError):
        return False


def _hash(path: Path) -> str:
    with open_regular(path, follow=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(path: Path) -> InputError:
    return InputError(
        f"{path} is needed for the search's weights, and is left as it is; move it away, or write elsewhere"
    )
