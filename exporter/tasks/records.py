"""What the lines or rows of a data file mean: prompts, right answers, choices, sets. Nothing here knows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.tasks.jsonl import read_objects
from exporter.tasks.lines import (
    EXAMPLE,
    FIELDS,
    DataFileError,
    LineError,
    Place,
    Problem,
    decode_lines,
    find_twice,
    is_table,
    read_content,
    show_text,
    unknown_field,
)
from exporter.tasks.table import read_fields

SETS = ("patching", "selection", "test")

_HIGHEST_ID = 2**31 - 1

Text = str | tuple[int, ...]
"""A text, or the token ids that were given in its place."""


@dataclass(frozen=True)
class Record:
    """One line or row as its user meant it: `answers` are all right ones, the first being *the* answer.

    A line of the patching set may have none, and so may one that names no set: it then belongs there.
    """

    place: Place
    prompt: Text
    answers: tuple[Text, ...]
    choices: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    split: str | None = None

    @property
    def line(self) -> int:
        """The line that it begins in."""
        return self.place.line


def read_records(path: str | Path) -> tuple[list[Record], list[Problem], str]:
    """The lines or rows that can be read, the problems of the others, and the file's sha256.

    Raises DataFileError for a file that is not there, is no text file, or holds no line at all.
    """
    problems: list[Problem] = []
    content = read_content(path)
    lines = decode_lines(path, content, problems)
    records = []
    for place, fields in read_fields(path, lines, problems) if is_table(path) else read_objects(lines, problems):
        try:
            records.append(_parse_fields(place, {name: value for name, value in fields.items() if value is not None}))
        except LineError as error:
            problems.append(Problem(place, str(error)))
    if not records and not problems:
        kind = "row with data; write one for each prompt under the first line, such as"
        message = f"{kind} prompt,answer" if is_table(path) else f"line with data; write one object per line: {EXAMPLE}"
        raise DataFileError(path, [Problem(None, f"the file holds no {message}")])
    return records, problems, hashlib.sha256(content).hexdigest()


def _parse_fields(place: Place, fields: Mapping[str, Any]) -> Record:
    for name in fields:
        if name not in FIELDS:
            raise LineError(unknown_field(name))
    prompt = _read_either(place, fields, "prompt")
    answers = _read_answers(place, fields)
    choices, distractors = (_read_texts(place, fields, name) for name in ("choices", "distractors"))
    if choices and distractors:
        raise LineError("both choices and distractors; give one of them (choices = answers + distractors)")
    if choices:
        missing = [answer for answer in answers if isinstance(answer, str) and answer not in choices]
        if missing:
            raise LineError(
                f"the answer {show_text(missing[0])} is not among the choices; add it, with the same spaces"
            )
        if len(choices) < 2:
            raise LineError("only one choice; give two or more")
    for distractor in distractors:
        if distractor in answers:
            raise LineError(f"the distractor {show_text(distractor)} is also an answer; take it out of one of them")
    if (choices or distractors) and answers and not isinstance(answers[0], str):
        raise LineError("answer_ids do not go with choices or distractors; give the answer as text")
    return Record(place, prompt, answers, choices, distractors, _read_split(fields))


def _read_answers(place: Place, fields: Mapping[str, Any]) -> tuple[Text, ...]:
    """All right answers, the first being the answer; none of a patching line that has none."""
    several = _read_texts(place, fields, "answers")
    if not {"answer", "answer_ids"} & fields.keys():
        if not several:
            _check_unlabelled(place, fields)
        return several
    answer = _read_either(place, fields, "answer")
    return (answer, *(other for other in several if other != answer))


def _check_unlabelled(place: Place, fields: Mapping[str, Any]) -> None:
    """Raise LineError for a line without an answer that needs one."""
    split = _read_split(fields)
    if split not in (None, "patching"):
        name = split.removeprefix("ood:")
        raise LineError(
            f"no 'answer': the set {name} needs one, and only patching {place.noun}s may go without; give it, or take "
            f"the {place.noun} out"
        )
    if "distractors" in fields:
        raise LineError("distractors, but no 'answer'; give the answer, too, or all choices, or neither")


def _read_either(place: Place, fields: Mapping[str, Any], name: str) -> Text:
    """A text, or the ids in its place; exactly one of them."""
    other = f"{name}_ids"
    if name in fields and other in fields:
        raise LineError(f"both {name} and {other}; give one of them")
    if other in fields:
        ids = fields[other]
        if not isinstance(ids, list) or not ids or any(type(i) is not int or not 0 <= i <= _HIGHEST_ID for i in ids):
            raise LineError(f"{other} is {show_text(ids)}; give a list of token ids, whole numbers from 0")
        return tuple(ids)
    if name not in fields:
        if place.row is not None:
            raise LineError(f"no {name!r}: the cell is empty; fill it, or take the row out")
        raise LineError(f"no {name!r}; write one object per line, such as {EXAMPLE}")
    return _check_text(place, name, fields[name])


def _read_texts(place: Place, fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if name not in fields:
        return ()
    value = fields[name]
    if not isinstance(value, list) or not value:
        example = '[" yes", " no"]' if place.row is None else " yes| no"
        raise LineError(f"{name} is {show_text(value)}; give a list of texts, such as {example}")
    texts = tuple(_check_text(place, name, item) for item in value)
    if (twice := find_twice(texts)) is not None:
        raise LineError(f"{show_text(twice)} stands twice among the {name}; keep one of them")
    return texts


def _check_text(place: Place, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise LineError(f"{name} is {show_text(value)}, which is no text; put it in quotes")
    if not value.strip():
        raise LineError(f"{name} is empty; give a text, or take the {place.noun} out")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise LineError(f"{name} holds half of a surrogate pair; write the character itself, as UTF-8")
    return value


def _read_split(fields: Mapping[str, Any]) -> str | None:
    """`patching`, `selection`, `test` or `ood:<name>`."""
    split = fields.get("split")
    if split is None or split in SETS:
        return split
    if isinstance(split, str) and (split == "ood" or split.startswith("ood:")):
        name = split.partition(":")[2] or "ood"
        if name in SETS or not name.replace("-", "_").isidentifier():
            raise LineError(f"split is {show_text(split)}; name an unseen set with letters, such as ood:wording")
        return f"ood:{name}"
    raise LineError(f"split is {show_text(split)}; choose from {', '.join(SETS)}, ood, ood:<name>")
