"""Read the rows of a .csv file by the names in its first line.

A table comes from a spreadsheet or was typed, and is misread in other ways than JSON is: by its delimiter, by quotes
that do not open a cell, by rows that hold commas alone. Each is told by its row, as a spreadsheet counts them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exporter.tasks.lines import (
    FIELDS,
    LISTS,
    DataFileError,
    LineError,
    Place,
    Problem,
    decode_lines,
    find_twice,
    read_content,
    refuse_file,
    show_text,
    unknown_field,
)

Cells = dict[str, str]
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_CSV_FAULTS = {
    "unexpected end of data": "a quote is opened and never closed; close every quote, and double quotes inside a cell",
    "expected after": "text stands behind a closing quote; close every quote, and double quotes inside a cell",
    "field larger than": "a cell of more than 131,072 characters, as when a quote is left open; close every quote",
}


def read_table(path: str | Path) -> list[tuple[Place, Cells]]:
    """The rows of any .csv file by the names in its first line. Raises DataFileError with everything wrong in it."""
    problems: list[Problem] = []
    rows = list(_read_cells(path, decode_lines(path, read_content(path, suffixes=(".csv",)), problems), problems))
    if not rows and not problems:
        problems.append(Problem(None, "there is no row under the first line; add one for each prompt"))
    if problems:
        raise DataFileError(path, problems)
    return rows


def read_fields(
    path: str | Path, lines: Sequence[str], problems: list[Problem]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows by the header's names, empty cells left out; a list is `a|b` or JSON."""
    for place, cells in _read_cells(path, lines, problems, _check_fields):
        try:
            yield place, {name: _read_cell(name, cell) for name, cell in cells.items() if cell}
        except LineError as error:
            problems.append(Problem(place, str(error)))


def _read_cells(
    path: str | Path,
    lines: Sequence[str],
    problems: list[Problem],
    check_header: Callable[[Sequence[str]], None] | None = None,
) -> Iterator[tuple[Place, Cells]]:
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    header: list[str] | None = None
    for place, row, raw in _split_rows(lines, first, problems):
        if header is None:
            header = [name.strip(" \t\ufeff\u00a0") for name in row]
            try:
                _check_header(raw, row, header)
                if check_header is not None:
                    check_header(header)
            except LineError as error:
                refuse_file(path, str(error), place)
            continue
        try:
            _check_row(raw, row, header)
        except LineError as error:
            problems.append(Problem(place, str(error)))
        else:
            yield place, dict(zip(header, row, strict=True))


def _split_rows(
    lines: Sequence[str], first: int, problems: list[Problem]
) -> Iterator[tuple[Place, list[str], Sequence[str]]]:
    """Each row with a cell: where it stands, its cells, and its lines as they are in the file."""
    reader = csv.reader((line + "\n" for line in lines[first:]), strict=True)
    number, start = first, first
    while True:
        number, start = number + 1, first + reader.line_num
        place = Place(start + 1, number)
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = next(
                (text for part, text in _CSV_FAULTS.items() if part in str(error)), f"{error}; mend the quotes"
            )
            problems.append(Problem(place, f"not CSV: {fault}; rows behind it were not read"))
            return
        if row:
            yield place, row, lines[start : first + reader.line_num]


def _check_header(raw: Sequence[str], row: Sequence[str], header: Sequence[str]) -> None:
    """Raise LineError for a first line that names no columns, or not each by a name of its own."""
    text = raw[0].strip(" \ufeff\"'")
    if (mark := re.match(r"sep=(.?)", text, re.IGNORECASE)) is not None:
        rest = "" if mark[1] in ("", ",") else f", and separate the cells with commas instead of {mark[1]!r}"
        raise LineError(f"{show_text(raw[0])} is a note of Excel's to itself; take the line out{rest}")
    if raw[0].lstrip().startswith(("{", "[")):
        raise LineError("this is JSON and no table; name the file .jsonl")
    for delimiter, name in _DELIMITERS.items():
        if len(row) == 1 and delimiter in row[0]:
            columns = ", ".join(show_text(column.strip()) for column in row[0].split(delimiter)[:4])
            raise LineError(f"the columns {columns} are separated by {name}; save the file separated by commas")
    _check_quotes(raw, row, header)
    unnamed = [str(number) for number, name in enumerate(header, start=1) if not name]
    if len(unnamed) == 1:
        raise LineError(f"column {unnamed[0]} has no name; name it, or take its comma out of every row")
    if unnamed:
        names = f"{', '.join(unnamed[:-1])} and {unnamed[-1]}"
        raise LineError(f"columns {names} have no name; name them, or take their commas out of every row")
    if (twice := find_twice(header)) is not None:
        raise LineError(f"the column {show_text(twice)} stands there twice; keep one of them")


def _check_fields(header: Sequence[str]) -> None:
    """Raise LineError for columns that are not those of prompts and answers."""
    known = {name.lower(): name for name in header}
    for needed in ("prompt", "answer"):
        if not {needed, f"{needed}s", f"{needed}_ids"} & set(header):
            found, wrong = show_text(", ".join(header)), known.get(needed)
            hint = (
                f"write {wrong!r} in small letters"
                if wrong
                else "the first line names the columns, separated by commas"
            )
            raise LineError(f"no column {needed!r} in {found}; {hint}: prompt,answer")
    for name in header:
        if name not in FIELDS:
            raise LineError(unknown_field(name))


def _check_row(raw: Sequence[str], row: Sequence[str], header: Sequence[str]) -> None:
    """Raise LineError for a row whose cells are not one for each column."""
    if not any(cell.strip() for cell in row):
        raise LineError("a row without text in any cell; fill it, or take the row out")
    _check_quotes(raw, row, header)
    n, columns = len(row), len(header)
    cells = f"{n} cell{'s' * (n != 1)} under {columns} column{'s' * (columns != 1)}"
    if n < columns:
        raise LineError(f"{cells}; give each column a cell, if an empty one")
    if n > columns:
        if not any(cell.strip() for cell in row[columns:]):
            raise LineError(f"{cells}, the last of them empty; take the commas at the row's end out")
        other = next((mark for mark in "“”„«»'" if any(cell.strip().startswith(mark) for cell in row)), "")
        hint = f' (" opens a cell, {other} does not)' if other else ""
        raise LineError(f"{cells}; put cells with a comma into quotes{hint}")


def _check_quotes(raw: Sequence[str], row: Sequence[str], header: Sequence[str]) -> None:
    """Raise LineError for a quote that was meant to open a cell, and does not because of what stands before it."""
    text = "," + "\n".join(raw) + ","
    closes = any(cell.rstrip().endswith('"') for cell in row)
    for number, cell in enumerate(row):
        inner = cell.lstrip(" \t\u00a0\ufeff\u200b")
        opens = inner.startswith('"') and inner != cell and f",{cell}," in text  # as it stands there, not in quotes
        if opens and (cell.rstrip().endswith('"') or (closes and len(row) != len(header))):
            before = cell[: len(cell) - len(inner)]
            raise LineError(
                f"the quote in column {number + 1} stands behind {before!r} and opens no cell, so {show_text(cell)} is "
                'read with its quotes; write the quote right behind the comma, and spaces inside it: ," the"'
            )


def _read_cell(name: str, cell: str) -> Any:
    if name in ("prompt", "answer"):
        return cell
    if name == "split":
        return cell.strip()
    if cell.lstrip().startswith("["):
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
