"""Scratch folders are gone afterwards, whenever a signal comes."""

from __future__ import annotations

import random
import signal
import tempfile
from pathlib import Path
from types import FrameType

import pytest

from exporter.files.scratch import make_scratch


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def test_a_signal_at_any_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.signal(signal.SIGALRM, _interrupt)
    draw, struck = random.Random(0), 0
    try:
        for _ in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 3e-4 * draw.random())
                with make_scratch() as folder:
                    (folder / "model.onnx").write_text("a file")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                struck += 1
            except OSError:  # shutil closes a folder twice where it is struck between closing it and noting that
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck > 0
    assert not list(tmp_path.iterdir())
