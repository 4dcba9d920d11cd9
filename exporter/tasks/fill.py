"""Write a data file from a template: one row of a table fills the slots of one prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from exporter.errors import UsageError
from exporter.tasks.lines import LISTS, DataFileError, Problem
from exporter.tasks.slots import Pieces, parse_slots
from exporter.tasks.table import read_table

_COPIED = ("answer", *LISTS, "split")


def fill_template(template: str, table: str | Path, *, answer: str | None = None) -> str:
    """The lines of a .jsonl file, one for each row of the .csv file `table`.

    A slot such as `{noun}` takes the cell of its column; the answer comes from `answer`, a template too, or from the
    column `answer`. Columns answers, choices, distractors and split are taken over. Raises UsageError for a template
    that cannot be filled, DataFileError for a table with anything wrong in it.
    """
    rows = read_table(table)
    columns = rows[0][1].keys()
    parts = {"--template": parse_slots(template, "--template"), "--answer": parse_slots(answer or "", "--answer")}
    for option, pieces in parts.items():
        for _, slot in pieces:
            if slot is not None and slot not in columns:
                raise UsageError(f"{option} has the slot {{{slot}}}, but {table} has the columns {', '.join(columns)}")
    if not any(slot for _, slot in parts["--template"]):
        raise UsageError(f"--template {template!r} has no slot; write one as a column's name, such as {{noun}}")
    if answer is None and not {"answer", "answers"} & columns:
        raise UsageError(f"no answers: give --answer, such as ' {{noun}}', or a column 'answer' in {table}")
    problems = [
        Problem(place, f"the cell of {slot!r} is empty; fill it, or take the row out")
        for place, cells in rows
        for slot in dict.fromkeys(slot for pieces in parts.values() for _, slot in pieces)
        if slot is not None and not cells[slot]
    ]
    if problems:
        raise DataFileError(table, problems)
    return "".join(_write_line(cells, parts["--template"], parts["--answer"]) for _, cells in rows)


def _fill(pieces: Pieces, cells: Mapping[str, str]) -> str:
    return "".join(text + ("" if slot is None else cells[slot]) for text, slot in pieces)


def _write_line(cells: Mapping[str, str], prompt: Pieces, answer: Pieces) -> str:
    fields: dict[str, str | list[str]] = {"prompt": _fill(prompt, cells)}
    for name in _COPIED:
        if cells.get(name):
            fields[name] = cells[name].split("|") if name in LISTS else cells[name]
    if answer:
        fields["answer"] = _fill(answer, cells)
    return json.dumps(fields, ensure_ascii=False) + "\n"
