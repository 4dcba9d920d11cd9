"""A user's data file as lines of text, and how a fault in it is told: by its line, or in a table by its row.

Every fault is a `Problem` with its place, and reading goes on after one, so that a file is mended in one go and
not in forty.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from exporter.errors import InputError
from exporter.files.reading import IrregularFileError, open_regular

SUFFIXES = (".jsonl", ".csv")
LONGEST_LINE = 64 * 1024  # bytes
LARGEST_FILE = 256 * 2**20  # bytes
MOST_LINES = 100_000
EXAMPLE = '{"prompt": "The capital of France is", "answer": " Paris"}'
LISTS = ("answers", "choices", "distractors")
FIELDS = ("prompt", "answer", *LISTS, "split", "prompt_ids", "answer_ids")
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclass(frozen=True)
class Place:
    """Where something stands in a file: its line, from 1, and in a table its row, the header being row 1.

    They differ where a cell holds line breaks. `str` gives what the file's program shows.
    """

    line: int
    row: int | None = None

    def __str__(self) -> str:
        if self.row is None:
            return f"line {self.line}"
        return f"row {self.row}" + (f" (line {self.line})" if self.row != self.line else "")

    @property
    def noun(self) -> str:
        """What to call it: `line` or `row`."""
        return "line" if self.row is None else "row"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do. `place` is None where it is the file as a whole."""

    place: Place | None
    message: str

    def __str__(self) -> str:
        return self.message if self.place is None else f"{self.place}: {self.message}"

    @property
    def line(self) -> int | None:
        """The line that it begins in."""
        return None if self.place is None else self.place.line

    @property
    def row(self) -> int | None:
        """The row, in a table."""
        return None if self.place is None else self.place.row


class DataFileError(InputError):
    """A data file that cannot be used; the message is the first problem, `problems` are all of them."""

    def __init__(self, path: str | Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        more = len(self.problems) - 1
        rest = f" (and {more} more problem{'s' * (more > 1)}: export-circuit check-data lists them)" if more else ""
        super().__init__(f"{path}: {self.problems[0]}{rest}")


class MissingFileError(DataFileError):
    """A data file that is not there."""


class LineError(Exception):
    """What is wrong with the line at hand; the caller knows its place."""


def show_text(text: object, most: int = 48) -> str:
    """A text in quotes, cut short, on one line."""
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[: most // 2]} ... {shown[-most // 3 :]}"


def list_places(places: Sequence[Place], most: int = 4) -> str:
    """Some places, such as `lines 2, 3, 9, 10 and 7 more`."""
    if len(places) == 1:
        return str(places[0])
    shown = [str(place.row or place.line) for place in places]
    last = shown[-1] if len(shown) <= most else f"{len(shown) - most} more"
    return f"{places[0].noun}s {', '.join(shown[: min(most, len(shown) - 1)])} and {last}"


def find_twice(texts: Sequence[str]) -> str | None:
    """The first text that stands there again, if any."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            return text
        seen.add(text)
    return None


def unknown_field(name: str) -> str:
    """What to say of a field that no line has."""
    close = difflib.get_close_matches(name.strip().lower(), FIELDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(FIELDS)}; leave others out"
    return f"unknown field {show_text(name)}; {hint}"


def refuse_file(path: str | Path, message: str, place: Place | None = None) -> NoReturn:
    """Raise DataFileError with one problem."""
    raise DataFileError(path, [Problem(place, message)])


def is_table(path: str | Path) -> bool:
    """Whether a file is read as a table, by its name."""
    return Path(path).suffix.lower() == ".csv"


def hash_data_file(path: str | Path) -> str:
    """The sha256 of a data file's bytes. Raises DataFileError when it is not there."""
    return hashlib.sha256(read_content(path)).hexdigest()


def read_content(path: str | Path, *, suffixes: Sequence[str] = SUFFIXES) -> bytes:
    """The bytes of a data file. Raises DataFileError for what is no such file, or too large, or cannot be read."""
    try:
        file = Path(path).expanduser()
    except RuntimeError:  # the home of a user that does not exist: a file may be called so
        file = Path(path)
    if file.suffix.lower() not in suffixes:
        refuse_file(
            path, f"its name must end in {' or '.join(suffixes)}, not in {file.suffix!r}; save it as such a file"
        )
    try:
        return _read_regular(path, file)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Problem(None, "no such file; check the name and the folder")
        raise MissingFileError(path, [missing]) from error
    except IrregularFileError as error:
        refuse_file(path, f"this is {error.kind} and no file that can be read; give a .jsonl or .csv file")
    except PermissionError:
        refuse_file(path, "the file or its folder may not be read; give yourself leave to (chmod), or copy it")
    except OSError as error:
        refuse_file(path, f"cannot be read: {error.strerror or error}; check it, or give another name")
    except DataFileError:
        raise
    except InputError as error:  # a name with a NUL in it, from a manifest
        refuse_file(path, f"cannot be read: {error}")


def _read_regular(path: str | Path, file: Path) -> bytes:
    """What a plain file holds; a pipe or a device is never waited for, and is not read."""
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        content = opened.read(LARGEST_FILE + 1) if size <= LARGEST_FILE else b""
    if max(size, len(content)) > LARGEST_FILE:
        refuse_file(path, f"the file has {size:,} bytes; some thousand lines are enough, cut it")
    return content


def decode_lines(path: str | Path, content: bytes, problems: list[Problem]) -> list[str]:
    """The lines as text, without a byte order mark; one that cannot be read is a problem, and empty."""
    _refuse_other_encodings(path, content)
    raw = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if len(raw) > MOST_LINES + 1:
        message = f"there are more than {MOST_LINES:,} lines; some thousand are enough, cut the file"
        refuse_file(path, message, Place(MOST_LINES + 1))
    lines = []
    for number, line in enumerate(raw, start=1):
        text, place = "", Place(number)
        if b"\x00" in line:
            refuse_file(path, "there is a NUL byte: this is no text file; give UTF-8 text, one prompt a line", place)
        if len(line) > LONGEST_LINE:
            problems.append(Problem(place, f"{len(line):,} bytes; a line has at most {LONGEST_LINE:,}, cut it"))
        else:
            try:
                text = line.decode("utf-8").removesuffix("\r")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at place {error.start + 1}"
                problems.append(Problem(place, f"not UTF-8 ({byte}); save the file as UTF-8"))
        lines.append(text)
    return lines


def _refuse_other_encodings(path: str | Path, content: bytes) -> None:
    """Say what a file is that is text, but not ours: UTF-16, UTF-32, line ends of old."""
    start = content[:400]
    zeros = sorted((start[0::2].count(0), start[1::2].count(0)))
    unmarked = zeros[0] == 0 and zeros[1] > 0.4 * len(start) > 3  # Latin letters have a zero in every other byte
    if content.startswith(_WIDE_MARKS) or unmarked:
        wide = b"\x00\x00" in content[:4]
        refuse_file(path, f"the file is {'UTF-32' if wide else 'UTF-16'}; save it as UTF-8", Place(1))
    if b"\r" in content.rstrip() and b"\n" not in content:
        refuse_file(path, "its lines end in CR alone; save it with the line ends of Unix or Windows", Place(1))
