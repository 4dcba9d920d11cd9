"""Numbers as a reader wants them, and lists as a sentence has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.metrics.statistics import Accuracy

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e9, "GB"), (1e6, "MB"))
_LEAST_P = 0.001


def write_share(share: float, digits: int = 1) -> str:
    """A share, 0 to 1, in percent; what is neither 0 nor 1 is not rounded to them."""
    percent = 100 * share
    least = 10**-digits
    if 0 < percent < least / 2:
        return f"< {least:g} %"
    if 100 - least / 2 <= percent < 100:
        return f"> {100 - least:g} %"
    return f"{percent:.{digits}f} %"


def write_interval(measured: Accuracy) -> str:
    """The 95 % interval of an accuracy."""
    low, high = measured.ci95
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def write_points(difference: float) -> str:
    """A difference of two shares in points, without its sign: `22 points`, `0.4 points`."""
    points = abs(100 * difference)
    shown = f"{points:.0f}" if points >= 9.95 else f"{points:.1f}"
    return f"{shown} point{'' if shown == '1' else 's'}"


def write_count(n: int, noun: str | None = None) -> str:
    """A whole number with its noun: `1 head`, `3,072 hidden units`."""
    return f"{n:,}" if noun is None else f"{n:,} {noun}{'' if n == 1 else 's'}"


def write_short(n: float) -> str:
    """A large number with three digits: `7.08 M`."""
    for size, letter in _UNITS:
        if abs(n) >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:.3g}"


def write_bytes(n: float) -> str:
    """A size with three digits: `538 MB`."""
    value, unit = next(((n / size, unit) for size, unit in _BYTES if n >= size), (n / 1e3, "kB"))
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"


def write_time(seconds: float) -> str:
    """A time with three digits, in milliseconds below a second."""
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {unit}" if value > 0 else "0 ms"


def write_p(p: float) -> str:
    """A p-value as it stands behind its name: `p = 0.031`, `p < 0.001`."""
    return f"p < {_LEAST_P}" if p < _LEAST_P else f"p = {p:.2g}"


def join_names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def name_metric(name: str) -> tuple[str, str]:
    """What a search went by, and its unit: `KL` and `nats`."""
    if name == "kl":
        return "KL", "nats"
    from exporter.metrics import METRICS  # takes torch, which no other part of a report needs

    known = METRICS.get(name)
    return name.replace("_", " "), "" if known is None else known.unit
