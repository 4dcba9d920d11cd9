"""Acronyms: `<|endoftext|>The Chief Executive Officer (CE` is followed by `O`, or `(` by `C`, `E` and `O`.

Each word is two tokens, the first being its capital with a space, so that the letters stand at the same positions in
every prompt (García-Carrasco et al., arXiv 2405.04156). Letters that a tokenizer merges, such as "CE", never occur:
the text of every prompt, also with its answer, reads back as the same tokens.
"""

from __future__ import annotations

import string
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from exporter.errors import InputError
from exporter.tasks.prompts import Piece, Prompt, Template, collect_ids, read_pieces, read_words, require_words
from exporter.tasks.spaces import build_sets
from exporter.tasks.task import SplitSizes, TaskData
from exporter.tasks.tokenizer import Tokenizer, encode_text

NAME = "acronym"
WORDING = "The {word1} {word2} {word3} ({letter1}{letter2}"
UNSEEN_WORDING = "That {word1} {word2} {word3} [{letter1}{letter2}"  # as many tokens as WORDING
FEWEST_WORDS = 100
FEWEST_TRIPLES = 50


def build(tokenizer: Tokenizer, *, seed: int, sizes: SplitSizes, letters: int = 1) -> TaskData:
    """The sets of this task; out of distribution stand other words and another wording with other brackets.

    With 3 `letters` the whole acronym is the answer; the prompts are the same, for an answer's earlier tokens
    stand in them.
    """
    words, unseen = _read_space_words(tokenizer, "acronym"), _read_space_words(tokenizer, "acronym_ood")
    return build_sets(
        tokenizer,
        NAME,
        _Acronyms(tokenizer, words, WORDING, letters),
        {
            "template": _Acronyms(tokenizer, words, UNSEEN_WORDING, letters),
            "words": _Acronyms(tokenizer, unseen, WORDING, letters),
        },
        seed=seed,
        sizes=sizes,
        parameters={"letters": letters, "wording": WORDING},
    )


def _read_space_words(tokenizer: Tokenizer, name: str) -> dict[str, list[Piece]]:
    """Words by capital: two tokens, the first being space and capital."""
    capitals = {
        ids: letter for letter in string.ascii_uppercase if len(ids := encode_text(tokenizer, f" {letter}")) == 1
    }
    listed = [word.capitalize() for word in read_words(name)]
    words: dict[str, list[Piece]] = {}
    for piece in read_pieces(tokenizer, listed, tokens=2):
        if capitals.get(piece.ids[:1]) == piece.text[1]:
            words.setdefault(piece.text[1], []).append(piece)
    usable = sum(len(pieces) for pieces in words.values())
    require_words(NAME, "words", usable, FEWEST_WORDS, len(listed))
    return words


def _find_lead(tokenizer: Tokenizer) -> int:
    """The token that stands first: end of text, or what this tokenizer begins or ends a text with."""
    if len(ids := encode_text(tokenizer, "<|endoftext|>")) == 1:
        return ids[0]
    lead = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if lead is None:
        raise InputError(f"this tokenizer has no end-of-text token, which the task {NAME!r} puts first")
    return int(lead)


class _Acronyms:
    """Prompts of one wording, in strata by answer, so that the rarer letters are asked for as often."""

    def __init__(self, tokenizer: Tokenizer, words: dict[str, list[Piece]], wording: str, letters: int) -> None:
        self._words, self._template, self._steps = words, Template(tokenizer, wording), letters
        self._lead = _find_lead(tokenizer)
        bracket = wording[wording.index("{letter1}") - 1]
        self._letters = {
            letter: Piece(letter, ids) for letter in sorted(words) if len(ids := encode_text(tokenizer, letter)) == 1
        }
        self._triples = self._find_triples(tokenizer, bracket)
        self._ends = [list(accumulate(self._count_words(triple) for triple in group)) for group in self._triples]

    @property
    def capacities(self) -> Sequence[int]:
        return [ends[-1] for ends in self._ends]

    def prompt(self, stratum: int, index: int) -> Prompt:
        position = bisect_right(self._ends[stratum], index)
        triple = self._triples[stratum][position]
        rest = self._ends[stratum][position] - 1 - index
        pieces = {}
        for number, letter in enumerate(triple, start=1):
            rest, choice = divmod(rest, len(self._words[letter]))
            pieces[f"word{number}"] = self._words[letter][choice]
            pieces[f"letter{number}"] = self._letters[letter]
        filled = self._template.fill(pieces)
        return Prompt(filled.text, (self._lead, *filled.ids), pieces["letter3"].ids, lead=1, steps=self._steps)

    @property
    def input_ids(self) -> set[int]:
        words = (piece for pieces in self._words.values() for piece in pieces)
        return {self._lead} | self._template.ids | collect_ids(words) | self.answer_ids

    @property
    def answer_ids(self) -> set[int]:
        return collect_ids(self._letters.values())

    def _count_words(self, triple: str) -> int:
        first, second, third = (len(self._words[letter]) for letter in triple)
        return first * second * third

    def _find_triples(self, tokenizer: Tokenizer, bracket: str) -> list[list[str]]:
        """Letters that stay apart behind the bracket, grouped by the third."""
        start = encode_text(tokenizer, f" {bracket}")

        def apart(letters: str) -> bool:
            ids = start + tuple(self._letters[letter].ids[0] for letter in letters)
            return encode_text(tokenizer, f" {bracket}{letters}") == ids

        pairs = [a + b for a in self._letters for b in self._letters if apart(a + b)]
        groups = [[pair + c for pair in pairs if apart(pair + c)] for c in self._letters]
        usable = sum(len(group) for group in groups)
        if usable < FEWEST_TRIPLES:
            raise InputError(
                f"this tokenizer cannot express the task {NAME!r}: {usable} acronyms stay three tokens, "
                f"{FEWEST_TRIPLES} are needed; use a model with GPT-2's tokenizer"
            )
        return [group for group in groups if group]
