"""Which size the gradual search tries next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.checks import require_number, take_integer

FIRST = 0.3  # of the dense model's parameters: what is left after the first cut
RATIO = 0.6  # of each size to the one before, and where it is small already, or not healed
RATIO_SMALL, SMALL = 0.7, 0.12
RATIO_UNHEALED = 0.8
LEAST = 0.032  # the smallest size (with `SETUP`) that is tried, unless a budget asks for a smaller one
NEAREST = 0.9  # of a size: no cut is tried that leaves more of it
BOLDER = 2.0  # the power of the ratio after a cut that did no harm
GENTLER, GENTLER_UNHEALED = 1, 3  # how often a gentler cut is tried where one did not keep the budget


@dataclass
class Walk:
    """From which size the next cut is made, how small it is to be, and what was tried: shares of the dense model."""

    target: float
    ratio: float
    base: float = 1.0
    best: float | None = None  # the smallest size that kept the budget
    failures: int = 0

    def go_on(self, size: float, *, kept: bool, judged: bool, harmless: bool = False) -> None:
        """Take in a size that was tried; from one that is not judged yet, the walk goes on whatever it is like.

        `harmless`: the cut alone left the answers as they were, so that the next one may take more.
        """
        if kept:
            self.best = size
        if kept or not judged:
            self.base = size
            if size < SMALL:
                self.ratio = max(self.ratio, RATIO_SMALL)
            self.target = size * self.ratio ** (BOLDER if harmless else 1.0)
            if size > LEAST / NEAREST:
                self.target = max(LEAST, self.target)
            return
        self.failures += 1
        self.ratio = self.ratio**0.5
        self.base = 1.0 if self.best is None else self.best
        self.target = (size * self.base) ** 0.5

    @classmethod
    def from_json(cls, data: Any) -> Walk:
        """From the fields of one. Raises TypeError, InputError: they are not."""
        walk = cls(**data)
        for name in ("target", "ratio", "base", *([] if walk.best is None else ["best"])):
            require_number(name, getattr(walk, name))
        take_integer("failures", walk.failures)
        return walk
