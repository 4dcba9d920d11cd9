"""A folder for what is not to be kept: dense models to be timed against, rehearsals, copies to be checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def make_scratch() -> Iterator[Path]:
    """A temporary folder that is gone afterwards, also when a signal comes while it is being removed."""
    folder = Path(tempfile.mkdtemp(prefix="export-circuit-"))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
