"""White space that is not what it looks like: tokens of its own where prompt and answer meet, or inside a prompt.

A no-break space before an answer, or a space behind it, cannot be seen in an editor and makes the task another one:
the model is asked for the space. What counts is whether the tokenizer makes other tokens of it than of a plain space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from exporter.tasks.lines import LineError, list_places, show_text
from exporter.tasks.records import Record
from exporter.tasks.tokenizer import Tokenizer, encode_text

_NAMES = {
    "\r": "carriage return",
    "\v": "vertical tab",
    "\f": "form feed",
    "\x85": "next line",
    "\ufeff": "byte order mark",
}
_INVISIBLE = "\u00ad\u180e\u200b\u2060\ufeff"  # zero width or shown at line ends only
_EDGE = re.compile(rf"[\s{_INVISIBLE}]*")
_PLAIN = " \t\n"
_JOINERS = "\u200c\u200d"  # part of how Persian and emoji are written


def name_character(character: str) -> str:
    """Its code point and its name, such as `U+00A0 (no-break space)`."""
    name = _NAMES.get(character) or unicodedata.name(character, "control character").lower()
    return f"U+{ord(character):04X} ({name})"


def is_odd(character: str) -> bool:
    """Whether it is white space other than space, tab and line break, or cannot be seen at all."""
    if character in _PLAIN or character in _JOINERS:
        return False
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def check_blanks(tokenizer: Tokenizer, prompt: str, answer: str, together: tuple[int, ...]) -> None:
    """Raise LineError for white space around an answer that the tokenizer gives tokens of its own.

    together: token ids of prompt and answer. Line breaks and tabs are taken for meant.
    """
    before, after = prompt[len(prompt.rstrip(" \t\n" + _odd(prompt))) :], _EDGE.match(answer)
    assert after is not None  # it matches nothing, too
    blank = before + after[0]
    odd = [character for character in blank if is_odd(character)]
    if odd or (len(blank) > 1 and not blank.strip(" ")):
        plain = prompt[: len(prompt) - len(before)] + " " + answer[len(after[0]) :]
        if encode_text(tokenizer, plain) != together:
            what = _list_names(odd) if odd else f"{len(blank)} spaces"
            raise LineError(
                f"{what} between prompt and answer {show_text(answer)}, to the model no single space but a token of "
                "its own; put one plain space before the answer and none behind the prompt, or give ids"
            )
    body = answer.rstrip(" " + _odd(answer))
    if body != answer and encode_text(tokenizer, prompt + body) != together:
        raise LineError(
            f"the answer {show_text(answer)} ends in {_list_names(answer[len(body) :])}, which is a token of its own; "
            "take it out, or give ids"
        )


def describe_odd_characters(tokenizer: Tokenizer, records: Iterable[Record]) -> list[str]:
    """A warning for each odd character that stands in texts and that the tokenizer tells from a plain space."""
    places: dict[str, list[Record]] = {}
    for record in records:
        texts = [
            text
            for text in (record.prompt, *record.answers, *record.choices, *record.distractors)
            if isinstance(text, str)
        ]
        for character in sorted({c for text in texts if not _is_plain(text) for c in text if is_odd(c)}):
            own = [text for text in texts if character in text]
            if any(
                encode_text(tokenizer, text.replace(character, " ")) != encode_text(tokenizer, text) for text in own
            ):
                places.setdefault(character, []).append(record)
    return [_describe(character, records) for character, records in places.items()]


def _describe(character: str, records: list[Record]) -> str:
    where = list_places([record.place for record in records])
    return (
        f"{name_character(character)} stands in {where}: it cannot be told from a space or from nothing, but to the "
        "model it is tokens of its own; replace it if it is not meant"
    )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _odd(text: str) -> str:
    """The odd white space of a text; not the marks that say which way a text runs."""
    return "".join({c for c in text if is_odd(c) and (c.isspace() or c in _INVISIBLE)}) if not _is_plain(text) else ""


def _list_names(characters: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(map(name_character, characters)))
