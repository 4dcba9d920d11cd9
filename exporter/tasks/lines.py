"""Split a user's data file, .jsonl or .csv, into lines of named fields, and say which lines cannot be read.

Every fault is a `Problem` with its line, and reading goes on after one, so that a file is mended in one go and
not in forty.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from exporter.errors import InputError

SUFFIXES = (".jsonl", ".csv")
LONGEST_LINE = 64 * 1024  # bytes
LARGEST_FILE = 256 * 2**20  # bytes
MOST_LINES = 100_000
EXAMPLE = '{"prompt": "The capital of France is", "answer": " Paris"}'
TEXTS = ("prompt", "answer", "split")
LISTS = ("answers", "choices", "distractors")
IDS = ("prompt_ids", "answer_ids")
FIELDS = ("prompt", "answer", *LISTS, "split", *IDS)


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do. `line` counts from 1; None where it is the file as a whole."""

    line: int | None
    message: str

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class DataFileError(InputError):
    """A data file that cannot be used; the message is the first problem, `problems` are all of them."""

    def __init__(self, path: str | Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        more = len(self.problems) - 1
        rest = f" (and {more} more problems: export-circuit check-data lists them)" if more else ""
        super().__init__(f"{path}: {self.problems[0]}{rest}")


class LineError(Exception):
    """What is wrong with the line at hand; the caller knows its number."""


def show_text(text: object, most: int = 48) -> str:
    """A text in quotes, cut short, on one line."""
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[: most // 2]} ... {shown[-most // 3 :]}"


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
    close = difflib.get_close_matches(name, FIELDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(FIELDS)}; leave others out"
    return f"unknown field {show_text(name)}; {hint}"


Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Line numbers, from 1, with the fields found there."""


def read_rows(path: str | Path, problems: list[Problem]) -> tuple[Rows, str]:
    """The lines of a file as fields, and the sha256 of its bytes; lines that cannot be read go to `problems`.

    Raises DataFileError for a file that is not there, or no text file.
    """
    content = _read_bytes(path)
    lines = _decode_lines(path, content, problems)
    rows = _read_csv(path, lines, problems) if Path(path).suffix == ".csv" else _read_jsonl(lines, problems)
    return rows, hashlib.sha256(content).hexdigest()


def read_table(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of any .csv file by the names in its first line. Raises DataFileError with everything wrong in it."""
    problems: list[Problem] = []
    rows = list(_read_cells(path, _decode_lines(path, _read_bytes(path, suffixes=(".csv",)), problems), problems))
    if not rows and not problems:
        problems.append(Problem(None, "there is no row under the first line; add one for each prompt"))
    if problems:
        raise DataFileError(path, problems)
    return rows


def hash_data_file(path: str | Path) -> str:
    """The sha256 of a data file's bytes. Raises DataFileError when it is not there."""
    return hashlib.sha256(_read_bytes(path)).hexdigest()


def _refuse(path: str | Path, message: str, line: int | None = None) -> NoReturn:
    raise DataFileError(path, [Problem(line, message)])


def _read_bytes(path: str | Path, *, suffixes: Sequence[str] = SUFFIXES) -> bytes:
    file = Path(path).expanduser()
    if file.suffix not in suffixes:
        _refuse(path, f"its name must end in {' or '.join(suffixes)}, not in {file.suffix!r}; save it as such a file")
    if not file.exists():
        _refuse(path, "no such file; check the name and the folder")
    if not file.is_file():
        _refuse(path, "this is no file that can be read; give a .jsonl or .csv file")
    if file.stat().st_size > LARGEST_FILE:
        _refuse(path, f"the file has {file.stat().st_size:,} bytes; some thousand lines are enough, cut it")
    return file.read_bytes()


def _decode_lines(path: str | Path, content: bytes, problems: list[Problem]) -> list[str]:
    """The lines as text, without a byte order mark; one that cannot be read is a problem, and empty."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        wide = b"\x00\x00" in content[:4]
        _refuse(path, f"the file is {'UTF-32' if wide else 'UTF-16'}; save it as UTF-8", 1)
    if b"\r" in content.rstrip() and b"\n" not in content:
        _refuse(path, "its lines end in CR alone; save it with the line ends of Unix or Windows", 1)
    raw = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if len(raw) > MOST_LINES + 1:
        _refuse(
            path, f"there are more than {MOST_LINES:,} lines; some thousand are enough, cut the file", MOST_LINES + 1
        )
    lines = []
    for number, line in enumerate(raw, start=1):
        if b"\x00" in line:
            _refuse(path, "there is a NUL byte: this is no text file; give UTF-8 text, one prompt a line", number)
        text = ""
        if len(line) > LONGEST_LINE:
            problems.append(Problem(number, f"{len(line):,} bytes; a line has at most {LONGEST_LINE:,}, cut it"))
        else:
            try:
                text = line.decode("utf-8").removesuffix("\r")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at place {error.start + 1}"
                problems.append(Problem(number, f"not UTF-8 ({byte}); save the file as UTF-8"))
        lines.append(text)
    return lines


def _read_jsonl(lines: Iterable[str], problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, _parse_json(line)
        except LineError as error:
            problems.append(Problem(number, str(error)))


def _parse_json(line: str) -> dict[str, Any]:
    def read_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := find_twice([name for name, _ in pairs])) is not None:
            raise LineError(f"the field {show_text(twice)} stands there twice; keep one of them")
        return dict(pairs)

    def refuse_constant(name: str) -> None:
        raise LineError(f"{name} is no JSON value; give text, or a list of texts")

    try:
        found = json.loads(line, object_pairs_hook=read_pairs, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        hint = "; a list or object over several lines must go on one" if line.strip() in ("{", "[", "[{") else ""
        raise LineError(
            f"not JSON ({error.msg} at place {error.colno}){hint}; write one object per line, such as {EXAMPLE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise LineError("JSON nested too deep, or a number too long; fields are text or lists of texts") from error
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else show_text(found)
        raise LineError(f"{kind} instead of an object; write one object per line, such as {EXAMPLE}")
    return found


def _read_csv(path: str | Path, lines: Sequence[str], problems: list[Problem]) -> Rows:
    """Rows by the header's names, empty cells left out; a list is `a|b` or JSON."""
    for number, cells in _read_cells(path, lines, problems, _check_fields):
        try:
            yield number, {name: _read_cell(name, cell) for name, cell in cells.items() if cell}
        except LineError as error:
            problems.append(Problem(number, str(error)))


def _read_cells(
    path: str | Path,
    lines: Sequence[str],
    problems: list[Problem],
    check_header: Callable[[Sequence[str]], None] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    first = next((place for place, line in enumerate(lines) if line.strip()), len(lines))
    reader = csv.reader((line + "\n" for line in lines[first:]), strict=True)
    header: list[str] | None = None
    start = first
    while True:
        start = first + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(Problem(start, f"not CSV ({error}); close every quote, and double quotes inside a cell"))
            return
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            try:
                if (twice := find_twice(header)) is not None:
                    raise LineError(f"the column {show_text(twice)} stands there twice; keep one of them")
                if "" in header:
                    raise LineError(f"column {header.index('') + 1} has no name; name it, or take its comma out")
                if check_header is not None:
                    check_header(header)
            except LineError as error:
                _refuse(path, str(error), start)
        elif len(row) != len(header):
            message = f"{len(row)} cells under {len(header)} columns; put cells with a comma into quotes"
            problems.append(Problem(start, message))
        else:
            yield start, dict(zip(header, row, strict=True))


def _check_fields(header: Sequence[str]) -> None:
    if not {"prompt", "prompt_ids"} & set(header):
        found = show_text(", ".join(header))
        raise LineError(
            f"no column 'prompt' in {found}; the first line names the columns, separated by commas: prompt,answer"
        )
    for name in header:
        if name not in FIELDS:
            raise LineError(unknown_field(name))


def _read_cell(name: str, cell: str) -> Any:
    if name in TEXTS:
        return cell
    if cell.startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise LineError(f"{name} is {show_text(cell)}, which is no JSON list; write a|b, or a JSON list") from error
    if name in LISTS:
        return cell.split("|")
    try:
        return [int(part) for part in cell.replace("|", " ").split()]
    except ValueError as error:
        raise LineError(f"{name} is {show_text(cell)}; give token ids, such as 464 1767") from error
