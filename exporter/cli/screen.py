"""Where people read: consoles and tables that show text as it is, whatever it holds and whatever the terminal can do.

Nothing that comes from outside is markup, colour or control: names like `[v2]o.onnx` are shown with their brackets,
an escape sequence in a model's metadata is shown as its characters, and a character that the terminal's encoding
lacks is written like `\\u25a0`. Style comes from Text objects and `style=` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from exporter.escaping import escape_controls

_PLAINER = {"■": "#", "·": ".", "…": "~"}  # of one column each, for terminals that have no others
_WIDTH = 120  # where there is no terminal to tell it


class Screen(Console):
    """A console without markup, highlighting or emoji codes; control characters are shown, not sent."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)
        if not self.is_terminal:
            self.width = _WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What every print goes through: segments of text, the only ones with control codes being rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._clean(segment.text), segment.style)

    def say(self, *lines: object) -> None:
        """Print each as one line, whatever is in it."""
        for line in lines:
            self.print(as_text(line), soft_wrap=True)

    def _clean(self, text: str) -> str:
        text = escape_controls(text, keep="\n\t")
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            plainer = "".join(_PLAINER.get(character, character) for character in text)
            text = plainer.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text


class Sheet(Table):
    """A table whose strings are shown as they are, each on one line of its cell."""

    def __init__(self, *headers: str, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else as_text(title), title_justify="left", **options)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: RenderableType = "", *rest: RenderableType, **options: Any) -> None:
        """See rich."""
        super().add_column(_show(header), *rest, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """See rich; a Text is taken as it is, with its style."""
        super().add_row(*map(_show, cells), **options)


def as_text(value: object, style: str = "") -> Text:
    """A value as Text of one line."""
    return Text(escape_controls(value), style=style)


def make_screen(*, quiet: bool = False) -> Screen:
    """Standard output for people."""
    return Screen(quiet=quiet)


def make_errors() -> Screen:
    """Standard error for people."""
    return Screen(stderr=True)


def print_text(text: str) -> None:
    """Text that a model made, as it is; on a terminal control characters but line ends and tabs are shown, not sent."""
    print(escape_controls(text, keep="\n\t") if sys.stdout.isatty() else text)


def _show(cell: Any) -> Any:
    return as_text(cell) if isinstance(cell, str) else cell
