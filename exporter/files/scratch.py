"""A folder for what is not to be kept: dense models to be timed against, rehearsals, copies to be checked."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def make_scratch() -> Iterator[Path]:
    """A temporary folder that is gone afterwards, also when a signal comes while it is being made or removed.

    Its name is known before it exists (mkdtemp returns it only after), and it is removed twice: the second
    time finds nothing, unless the first was interrupted.
    """
    folder = Path(tempfile.gettempdir()) / f"export-circuit-{secrets.token_hex(8)}"
    try:
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
