"""Prompts of the built-in tasks, put together from words and wordings: each part has its text and its token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from exporter.errors import InputError
from exporter.tasks.tokenizer import Tokenizer, encode_text


@dataclass(frozen=True)
class Piece:
    """Text that stands in a prompt, with its token ids; the leading space belongs to it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One prompt and its right answers. `lead` special tokens stand before the text.

    The last `steps - 1` of the ids are tokens of the answer, too (teacher forcing).
    """

    text: str
    ids: tuple[int, ...]
    answers: tuple[int, ...]
    lead: int = 0
    steps: int = 1


class Template:
    """A wording with slots such as `{name}`; a space before a slot belongs to what fills it."""

    def __init__(self, tokenizer: Tokenizer, wording: str) -> None:
        self.wording = wording
        self._parts: list[str | Piece] = []
        for part in re.split(r"( ?\{\w+\})", wording):
            if part.endswith("}"):
                self._parts.append(part.strip(" {}"))
            elif part:
                self._parts.append(Piece(part, encode_text(tokenizer, part)))

    def fill(self, pieces: Mapping[str, Piece]) -> Piece:
        """The wording with each slot filled; pieces without a slot are ignored."""
        filled = [pieces[part] if isinstance(part, str) else part for part in self._parts]
        return Piece("".join(p.text for p in filled), tuple(i for p in filled for i in p.ids))

    @property
    def ids(self) -> set[int]:
        """The token ids of the wording itself."""
        return {i for part in self._parts if isinstance(part, Piece) for i in part.ids}

    def has(self, slot: str) -> bool:
        """Whether the wording has this slot."""
        return slot in self._parts


def read_words(name: str) -> list[str]:
    """A bundled word list, e.g. `names` or `names_ood`."""
    return resources.files("exporter.tasks").joinpath("words", f"{name}.txt").read_text(encoding="utf-8").split()


def read_pieces(tokenizer: Tokenizer, words: Sequence[str], *, tokens: int = 1) -> list[Piece]:
    """The words, each with a leading space, that have exactly this many tokens."""
    pieces = [Piece(f" {word}", encode_text(tokenizer, f" {word}")) for word in words]
    return [piece for piece in pieces if len(piece.ids) == tokens]


def require_words(task: str, kind: str, usable: int, needed: int, listed: int) -> None:
    """Raise InputError where too few of the listed words have as many tokens as the task needs."""
    if usable < needed:
        raise InputError(
            f"this tokenizer cannot express the task {task!r}: {usable} of {listed} {kind} align, "
            f"{needed} are needed; use a model with GPT-2's tokenizer, or build a Dataset from tensors"
        )


def collect_ids(pieces: Iterable[Piece]) -> set[int]:
    """The token ids of some pieces."""
    return {i for piece in pieces for i in piece.ids}
