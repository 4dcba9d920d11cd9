"""What is typed, read: names of files and models, and amounts of memory. What cannot be one is a usage error.

Whether a file exists and can be read is not checked here: whoever opens it raises InputError, not a usage error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from exporter.errors import UsageError

_MOST_GIB = 2**20


def read_path(text: str) -> Path:
    """The path of a file or folder; raises BadParameter for an empty one."""
    return Path(read_name(text))


def read_name(text: str) -> str:
    """A name that is not empty; raises BadParameter."""
    if not text.strip():
        raise typer.BadParameter("the name is empty; give one, or leave the option out")
    return text


def take_file(help: str) -> Any:
    """An argument that is a path."""
    return typer.Argument(help=help, parser=read_path, metavar="PATH")


def take_path(help: str, *, panel: str | None = None) -> Any:
    """An option that is a path. `panel` is where --help shows it; None is the first panel."""
    return typer.Option(help=help, parser=read_path, metavar="PATH", rich_help_panel=panel)


def take_name(help: str, *, panel: str | None = None) -> Any:
    """An option that is a name."""
    return typer.Option(help=help, parser=read_name, metavar="NAME", rich_help_panel=panel)


def take_names(name: str, help: str, *, panel: str | None = None) -> Any:
    """An option, called `name`, of names; it may be repeated."""
    return typer.Option(name, help=help, metavar="NAME", rich_help_panel=panel)


def read_names(texts: Sequence[str] | None) -> tuple[str, ...]:
    """The names of a repeated option, each of whose values may have several with commas between them."""
    return tuple(name.strip() for text in texts or () for name in text.split(","))


def take_value(help: str, *, panel: str | None = None, least: int | None = None, metavar: str | None = None) -> Any:
    """An option that is a text, a number (`least` is the smallest that is taken) or one of some choices."""
    return typer.Option(help=help, min=least, metavar=metavar, rich_help_panel=panel)


def take_flag(name: str, help: str, *, panel: str | None = None) -> Any:
    """An option that is given or not, and takes no value."""
    return typer.Option(name, help=help, metavar="", rich_help_panel=panel)


def read_gibibytes(amount: float | None) -> int | None:
    """An amount of memory in bytes; raises UsageError."""
    if amount is None:
        return None
    if not 0 < amount <= _MOST_GIB or math.isnan(amount):
        raise UsageError(f"--memory-limit is {amount:g}; give GiB above 0, at most {_MOST_GIB:,}, such as 4")
    return math.ceil(amount * 2**30)
