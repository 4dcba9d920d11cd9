"""Scales of small charts: where a value lies, and which values an axis names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 220  # of a chart, as wide as a phone shows: its text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 34
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A named value of an axis, and where it lies."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, laid from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def choose_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values from `low` to `high`, at most so many."""
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * step for step in _STEPS if unit * step >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def choose_powers(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten from `low` to `high`: all, or where they are many the powers alone, or some."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if 2 <= len(found) <= 5:
            return found
    return [low, high] if len(found) < 2 else found[:: math.ceil(len(found) / 5)]


@dataclass(frozen=True)
class Chart:
    """A frame with its two axes; x is on a logarithmic scale with `log_x`."""

    x: Scale
    y: Scale
    log_x: bool
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    @classmethod
    def of(
        cls,
        xs: Iterable[float],
        ys: Iterable[float],
        *,
        write_x: Callable[[float], str],
        write_y: Callable[[float], str],
        log_x: bool = False,
        y_from: float | None = None,
        y_to: float | None = None,
        flip: bool = False,
    ) -> Chart:
        """A frame around some points; `flip` has the largest x on the left."""
        low_x, high_x = _widen(*_bounds([math.log10(x) if log_x else x for x in xs]))
        low_y, high_y = _bounds([*ys, *(bound for bound in (y_from, y_to) if bound is not None)])
        if high_y <= low_y:  # every point has one value: the frame goes down from a bound above, else to both sides
            low_y, high_y = (low_y - 0.1, high_y) if y_to is not None else _widen(low_y, high_y)
        ticks = choose_ticks(low_y, high_y)
        if y_to is None and len(ticks) > 1 and high_y > ticks[-1]:  # the axis ends above the highest point
            high_y = round(ticks[-1] + (ticks[-1] - ticks[-2]), 12)
            ticks.append(high_y)
        left, right = (WIDTH - RIGHT, LEFT) if flip else (LEFT, WIDTH - RIGHT)
        x = Scale(low_x, high_x, left, right)
        y = Scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
        named = choose_powers(10**low_x, 10**high_x) if log_x else choose_ticks(low_x, high_x)
        return cls(
            x,
            y,
            log_x,
            [Tick(x.place(math.log10(value) if log_x else value), write_x(value)) for value in named],
            [Tick(y.place(value), write_y(value)) for value in ticks],
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        return self.x.place(math.log10(x) if self.log_x else x), self.y.place(y)

    def trace(self, points: Sequence[tuple[float, float]]) -> str:
        """The path of a line through points."""
        placed = [self.place(*point) for point in points]
        return "M" + " L".join(f"{x:g} {y:g}" for x, y in placed) if placed else ""


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)


def _widen(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin
