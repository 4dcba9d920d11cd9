"""Read the lines of a .jsonl file: one JSON object each, of the fields that its user named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from exporter.tasks.lines import EXAMPLE, LineError, Place, Problem, find_twice, show_text


def read_objects(lines: Iterable[str], problems: list[Problem]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The object on each line that is not blank; lines that cannot be read go to `problems`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Place(number), _parse_object(line)
        except LineError as error:
            problems.append(Problem(Place(number), str(error)))


def _parse_object(line: str) -> dict[str, Any]:
    def read_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (twice := find_twice([name for name, _ in pairs])) is not None:
            raise LineError(f"the field {show_text(twice)} stands there twice; keep one of them")
        return dict(pairs)

    def refuse_constant(name: str) -> None:
        raise LineError(f"{name} is no JSON value; give text, or a list of texts")

    try:
        value = json.loads(line, object_pairs_hook=read_pairs, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        cause = f"{error.msg} at place {error.colno}"
        raise LineError(f"not JSON ({cause}){_hint(line)}; write one object per line, such as {EXAMPLE}") from error
    except (ValueError, RecursionError) as error:
        raise LineError("JSON nested too deep, or a number too long; fields are text or lists of texts") from error
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else show_text(value)
        raise LineError(f"{kind} instead of an object; write one object per line, such as {EXAMPLE}")
    return value


def _hint(line: str) -> str:
    """What is likely to have happened to a line that is no JSON."""
    text = line.strip()
    if text in ("{", "[", "[{", "}", "]", "}]", "},") or re.fullmatch(r'"\w+"\s*:.*', text):
        return "; a list or object over several lines must go on one"
    if text.endswith("},") or text.startswith("[{"):
        return "; this looks like one JSON array: take out its brackets and the commas between its objects"
    if re.match(r"\{\s*'", text):
        return "; JSON takes double quotes, not single ones"
    if re.search(r",\s*[}\]]\s*$", text):
        return "; take out the comma before the last bracket"
    if re.match(r"\ufeff", text):
        return "; take out the byte order mark (U+FEFF) that it begins with"
    if text.startswith(("#", "//")):
        return "; JSON has no comments, take it out"
    if re.match(r'"?(prompt|answer)s?(_ids)?"?\s*[,;\t]', text, re.IGNORECASE):
        return "; this looks like a table: name the file .csv"
    return ""
