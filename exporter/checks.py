"""What a public function is given, checked where it is given: a wrong type or range is named, not met far away."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from exporter.errors import InputError


def require_type(name: str, value: object, *kinds: type) -> None:
    """Raise InputError for a value of another type; a bool is no number here."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(f"{name} must be {wanted}, not {describe(value)}")


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise InputError for what is none of the choices."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shorten(value)}; choose from {', '.join(choices)}")


def take_integer(name: str, value: Any, *, least: int = 0, most: float = math.inf) -> int:
    """A whole number as int, also out of numpy; raises InputError for bools, floats and what is out of range."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        upto = "" if math.isinf(most) else f" to {most:,}"
        raise InputError(f"{name} must be a whole number from {least:,}{upto}, not {describe(value)}")
    return number


def take_integers(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers from 0 out of any sequence; raises InputError."""
    return tuple(take_integer(f"each of {name}", value) for value in take_items(name, values))


def take_items(name: str, values: Any) -> tuple[Any, ...]:
    """What a list, tuple or set holds; raises InputError, also for a text, which is no list of letters."""
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list or tuple, not {describe(values)}")
    return tuple(values)


def require_number(name: str, value: object) -> None:
    """Raise InputError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {describe(value)}")


def describe(value: object) -> str:
    """A value and its type, briefly."""
    kind = type(value).__name__
    shown = shorten(value) if isinstance(value, str | bytes | int | float | list | tuple | None) else ""
    return f"{kind} {shown}".strip() if not isinstance(value, bool) and value is not None else str(value)


def shorten(value: object) -> str:
    """A value as Python writes it, cut short."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
