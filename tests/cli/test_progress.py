"""The bar of a gradual search: sizes shrink by a ratio, so it goes by their logarithm."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from exporter.circuit import SizeStep
from exporter.cli.progress import LEAST_SHARE, JobProgress
from exporter.search import walk


def test_the_bar_goes_by_the_logarithm_of_the_size_and_never_back() -> None:
    step = SizeStep(1000, 1, 1, 0.1, 0.9, 0.1, 0.9, 10, True)
    shown = JobProgress(Console(file=io.StringIO()), disable=True)
    done = []
    for share in (1.0, LEAST_SHARE**0.5, 0.5, LEAST_SHARE, LEAST_SHARE / 2):
        shown.on_size(step, share)
        (task,) = shown.progress.tasks
        done.append(task.completed)
    assert done == [0, 50, 50, 99, 99] and task.total == 100


def test_the_least_size_is_that_of_the_walk() -> None:
    assert pytest.approx(walk.LEAST) == LEAST_SHARE
