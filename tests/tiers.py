"""Two tiers: by default a few examples of everything; all of them in a thorough run, which `make test-all` is.

What is marked `slow` belongs to the thorough run alone. All variants are tried at the cheapest level, and one or two
stand for them where each takes a model through the whole job.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pytest

THOROUGH = os.environ.get("EXPORT_CIRCUIT_TESTS") == "thorough"


def examples(many: int) -> int:
    """How many examples a property is given: all in a thorough run, else a fifth, but five at least."""
    return many if THOROUGH else min(many, max(5, many // 5))


def thin(cases: Iterable[Any], kept: Collection[Any] | Callable[[Any], bool]) -> list[Any]:
    """All cases for `parametrize`; those that are not kept are for a thorough run."""

    def is_kept(case: Any) -> bool:
        return kept(case) if callable(kept) else case in kept

    return [case if is_kept(case) else as_slow(case) for case in cases]


def diagonal(*axes: Sequence[Any]) -> list[Any]:
    """The product of the axes for `parametrize`; by default as many cases as the longest axis has values.

    Each value of each axis is among those.
    """
    kept = [tuple(axis[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))]
    return thin(itertools.product(*axes), kept)


def as_slow(case: Any) -> Any:
    """This case of a `parametrize` is for a thorough run."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
