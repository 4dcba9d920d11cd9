"""How much a tokenizer.json can make of a text, before anything is read with it.

A tokenizer is data that rewrites text: replacements, prefixes, bytes spelt out as characters, special tokens. A file
from somebody else can make a megabyte of each letter, or double a text forty times. What a file can do at most is
computed from its JSON, in its own size's time; what no tokenizer needs is refused. Regular expressions are tried on
short texts. torch and transformers are not needed.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.errors import InputError

LARGEST_FILE = 256 * 2**20  # bytes; the largest tokenizer.json that we met has 35 MB
MOST_GROWTH = 256  # characters that one becomes; full Unicode normalisation alone makes 18 of one
MOST_LEAD = 64  # special tokens that are put around a text
LONGEST_TOKEN = 4096  # characters
LONGEST_AFFIX = 256  # characters of a subword's prefix or suffix
LONGEST_WORD = 1000  # characters that WordPiece cuts, in quadratic time
_DEEPEST = 64  # components inside components
_MOST_SECONDS = 1.0  # of the processor, for one regular expression and one short text
_UNICODE = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip", "BertNormalizer")
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")

Part = Mapping[str, Any]


class GrowthError(Exception):
    """What grows, in words."""


def check_bounds(data: Part, path: Path) -> None:
    """Raise InputError where the tokenizer of this JSON could make more of a text than any tokenizer needs to."""
    try:
        _check_model(data.get("model"), data.get("added_tokens"))
        for name in ("normalizer", "decoder"):
            growth = _measure_rewriting(list(_flatten(data.get(name))))
            if growth > MOST_GROWTH:
                raise GrowthError(f"its {name} can make {growth:,.0f} characters of one")
        growth = _measure_splitting(list(_flatten(data.get("pre_tokenizer"))))
        if growth > MOST_GROWTH:
            raise GrowthError(f"its pre_tokenizer can make {growth:,.0f} characters of one")
        _check_templates(list(_flatten(data.get("post_processor"))))
        for pattern in dict.fromkeys(_find_patterns(data)):
            _try_pattern(pattern)
    except GrowthError as error:
        raise InputError(
            f"{path}: {error}, which no tokenizer needs and no memory holds; get the tokenizer from its authors"
        ) from error
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(
            f"the tokenizer in {path.parent} cannot be loaded: {path.name} is of no known form; get it again"
        ) from error


def _flatten(part: Part | None, depth: int = 0) -> Iterator[Part]:
    """The components of a sequence, in order."""
    if part is None:
        return
    if depth > _DEEPEST:
        raise GrowthError("it nests its components without end")
    inner = next((part[name] for name in _LISTS if isinstance(part.get(name), list)), None)
    if inner is None:
        yield part
    else:
        for other in inner:
            yield from _flatten(other, depth + 1)


class _Weights:
    """At most how many characters one becomes, by character; `other` is for all that no component names."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self.other = 1.0
        self.added = 0.0  # to a text as a whole, or to each piece between added tokens

    def sum_up(self, text: str) -> float:
        return sum(self.own.get(character, self.other) for character in text)

    def most(self) -> float:
        return max((self.other, *self.own.values()))

    def level(self, weight: float) -> None:
        self.own, self.other = {}, weight


def _measure_rewriting(parts: Sequence[Part]) -> float:
    """At most how many characters these components, one after the other, make of one.

    From the last to the first: how much a text grows depends on what the components behind make of each character.
    """
    weights = _Weights()
    for part in reversed(parts):
        kind = part.get("type")
        if kind == "Replace":
            _replace(weights, part["pattern"], str(part["content"]))
        elif kind == "Prepend":
            weights.added += weights.sum_up(str(part["prepend"]))
        elif kind == "Precompiled" and part.get("precompiled_charsmap"):
            weights.level(_find_longest(part["precompiled_charsmap"]) * weights.most())
        elif kind == "ByteLevel":
            weights.level(4 * weights.most())
        elif kind in ("WordPiece", "Metaspace", "BPEDecoder", "CTC"):  # decoders that put a space or a character
            weights.added += 1
        elif kind in _UNICODE:
            weights.level(weights.most())  # which letters they make of others is theirs to know
        if weights.most() + weights.added > 1e30:
            return 1e30
    return weights.most() + weights.added


def _replace(weights: _Weights, pattern: Part, content: str) -> None:
    total = weights.sum_up(content)
    literal = pattern.get("String")
    if literal is None:  # a regular expression may match a character, or nothing between any two
        weights.own = {character: weight + total for character, weight in weights.own.items()}
        weights.other += total
        weights.added += total
    elif literal:
        for character in set(literal):
            weights.own[character] = max(weights.own.get(character, weights.other), total / len(literal))
    else:
        weights.level(weights.most() + total)
        weights.added += total


def _find_longest(charsmap: str) -> int:
    """Characters of the longest text in the table of a Precompiled normaliser: the trie's length, trie, texts."""
    try:
        blob = base64.b64decode(charsmap, validate=True)
    except binascii.Error:
        raise GrowthError("its normalizer has a table that is damaged") from None
    start = 4 + int.from_bytes(blob[:4], "little")
    return max((len(text.decode("utf-8", "replace")) for text in blob[start:].split(b"\0")), default=1) or 1


def _measure_splitting(parts: Sequence[Part]) -> float:
    growth = 1.0
    for part in parts:
        kind = part.get("type")
        growth *= {"ByteLevel": 4.0, "Metaspace": 2.0}.get(str(kind), 1.0)  # bytes spelt out; a mark for each piece
    return growth


def _check_templates(parts: Sequence[Part]) -> None:
    lead = 0
    for part in parts:
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            lead += 2
        if part.get("type") != "TemplateProcessing":
            continue
        texts = 0
        for piece in part["single"]:
            if "Sequence" in piece:
                texts += 1
            else:
                lead += len(part["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
        if texts != 1:
            raise GrowthError(f"its post_processor gives the text {texts} times")
    if lead > MOST_LEAD or len(parts) > MOST_LEAD:
        raise GrowthError(f"its post_processor puts {lead:,} tokens around each text")


def _check_model(model: Part | None, added: Sequence[Part] | None) -> None:
    if model is None:
        raise ValueError
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(model.get(name) or "") > LONGEST_AFFIX:
            raise GrowthError(f"its {name} has {len(model[name]):,} characters")
    if (model.get("max_input_chars_per_word") or 0) > LONGEST_WORD:
        raise GrowthError(f"it cuts words of up to {model['max_input_chars_per_word']:,} characters, all at once")
    vocabulary = model.get("vocab") or ()
    names = vocabulary if isinstance(vocabulary, dict) else (row[0] for row in vocabulary)
    longest = max((*map(len, names), *(len(token["content"]) for token in added or ())), default=0)
    if longest > LONGEST_TOKEN:
        raise GrowthError(f"one of its tokens has {longest:,} characters")


def check_token_lengths(tokens: Sequence[str], path: Path) -> None:
    """Raise InputError for a vocabulary with a token that is longer than any token needs to be."""
    try:
        _check_model({"vocab": dict.fromkeys(tokens)}, None)
    except GrowthError as error:
        raise InputError(f"{path}: {error}, which no tokenizer needs; get it again") from error


def _find_patterns(data: Part) -> Iterator[str]:
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        for part in _flatten(data.get(name)):
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                yield pattern["Regex"]


def _try_pattern(pattern: str) -> None:
    """Split short texts by a regular expression. The engine gives up after ten million steps, and then panics."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = [c for c in dict.fromkeys(pattern) if c.isalnum() or c in " _-"][:24]
    runs = [*dict.fromkeys(["a", "A", "1", " ", "\n", ".", "é", "中", "ab ", "a1", *letters])]
    with _hide_panics():
        try:
            splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
            tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
            tokenizer.pre_tokenizer = splitter
            for length in (8, 16, 24, 32, 48, 100, 400):
                for run in runs:
                    for end in ("", "!", "\x00x", "!" + "".join(letters)):  # the last for engines that look ahead
                        start = time.thread_time()
                        tokenizer.encode(run * (length // len(run)) + end)
                        if time.thread_time() - start > _MOST_SECONDS:
                            raise GrowthError(f"its pattern {pattern[:60]!r} takes seconds for {length} characters")
        except GrowthError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise GrowthError(
                f"its pattern {pattern[:60]!r} cannot be matched ({' '.join(str(error).split())[:60]})"
            ) from None


@contextmanager
def _hide_panics() -> Iterator[None]:
    """The tokenizers library prints what it panics at, to the process's standard error; nothing is printed here."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
