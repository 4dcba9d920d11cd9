"""What the lines of a data file mean: prompts, right answers, choices, sets. Nothing here knows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.tasks.lines import (
    EXAMPLE,
    FIELDS,
    DataFileError,
    LineError,
    Problem,
    find_twice,
    read_rows,
    show_text,
    unknown_field,
)

SETS = ("patching", "selection", "test")

Text = str | tuple[int, ...]
"""A text, or the token ids that were given in its place."""


@dataclass(frozen=True)
class Record:
    """One line as its user meant it: `answers` are all right ones, the first being *the* answer."""

    line: int
    prompt: Text
    answers: tuple[Text, ...]
    choices: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    split: str | None = None


def read_records(path: str | Path) -> tuple[list[Record], list[Problem], str]:
    """The lines that can be read, the problems of the others, and the file's sha256.

    Raises DataFileError for a file that is not there, is no text file, or holds no line at all.
    """
    problems: list[Problem] = []
    rows, sha256 = read_rows(path, problems)
    records = []
    for line, fields in rows:
        try:
            records.append(_parse_fields(line, {name: value for name, value in fields.items() if value is not None}))
        except LineError as error:
            problems.append(Problem(line, str(error)))
    if not records and not problems:
        message = f"the file holds no line with data; write one object per line: {EXAMPLE}"
        raise DataFileError(path, [Problem(None, message)])
    return records, problems, sha256


def _parse_fields(line: int, fields: Mapping[str, Any]) -> Record:
    for name in fields:
        if name not in FIELDS:
            raise LineError(unknown_field(name))
    prompt = _read_either(fields, "prompt")
    several = _read_texts(fields, "answers")
    alone = several and not {"answer", "answer_ids"} & fields.keys()
    answer = several[0] if alone else _read_either(fields, "answer")
    answers = (answer, *(other for other in several if other != answer))
    choices, distractors = _read_texts(fields, "choices"), _read_texts(fields, "distractors")
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
    if (choices or distractors) and not isinstance(answers[0], str):
        raise LineError("answer_ids do not go with choices or distractors; give the answer as text")
    return Record(line, prompt, answers, choices, distractors, _read_split(fields))


def _read_either(fields: Mapping[str, Any], name: str) -> Text:
    """A text, or the ids in its place; exactly one of them."""
    other = f"{name}_ids"
    if name in fields and other in fields:
        raise LineError(f"both {name} and {other}; give one of them")
    if other in fields:
        ids = fields[other]
        if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
            raise LineError(f"{other} is {show_text(ids)}; give a list of token ids, whole numbers from 0")
        return tuple(ids)
    if name not in fields:
        raise LineError(f"no {name!r}; write one object per line, such as {EXAMPLE}")
    return _check_text(name, fields[name])


def _read_texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if name not in fields:
        return ()
    value = fields[name]
    if not isinstance(value, list) or not value:
        raise LineError(f'{name} is {show_text(value)}; give a list of texts, such as [" yes", " no"]')
    texts = tuple(_check_text(name, item) for item in value)
    if (twice := find_twice(texts)) is not None:
        raise LineError(f"{show_text(twice)} stands twice among the {name}; keep one of them")
    return texts


def _check_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise LineError(f"{name} is {show_text(value)}, which is no text; put it in quotes")
    if not value.strip():
        raise LineError(f"{name} is empty; give a text, or take the line out")
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
