"""A tokenizer that puts a task's template around a text itself, so that a bare text becomes the task's prompt.

What a text-classification pipeline is given is a text, and what the model was searched on are prompts. Between the two
is the template; its tokens can be put before and after a text's by the tokenizer's post-processor wherever a text has
the same tokens alone as within the prompt. Whether it does is found by trying all of the task's prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError, refuse_panics
from exporter.loading.sources.reading import read_tokenizer_json, write_frame
from exporter.tasks.template import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Readings = Sequence[tuple[str, Sequence[int]]]
"""Prompts as text, each with its tokens."""


def frame_tokenizer(backend: Tokenizer, template: Template, readings: Readings) -> Tokenizer | None:
    """A copy of a settled tokenizer that reads a text as it reads the template filled with it; None where none does.

    `readings` must fit the template. White space behind a text is taken away. Where tokens begin with the space before
    them, that of the prefix is put before the text instead. A template with nothing after the text has no frame:
    `is_framed` would not know it.
    """
    if not template.suffix:
        return None
    texts = [(template.cut(prompt), list(ids)) for prompt, ids in readings]
    for variant in _vary(backend, template):
        if texts and (frame := _find_frame(variant, texts)) is not None:
            write_frame(variant, *frame)
            return variant
    return None


def _vary(backend: Tokenizer, template: Template) -> Iterator[Tokenizer]:
    """Copies of a tokenizer: one that takes white space off a text's end; one that also puts one space before it."""
    from tokenizers import Tokenizer, normalizers

    # not off its start in the first: Metaspace marks what stands at the start of the text as it was given
    steps: list[list[normalizers.Normalizer]] = [[normalizers.Strip(left=False)]]
    if template.prefix.endswith(" "):
        steps.append([normalizers.Strip(), normalizers.Prepend(" ")])
    for first in steps:
        copy = Tokenizer.from_str(backend.to_str())
        own = [] if copy.normalizer is None else [copy.normalizer]
        copy.normalizer = normalizers.Sequence([*first, *own])
        yield copy


def _find_frame(backend: Tokenizer, texts: Readings) -> tuple[list[int], list[int]] | None:
    """The tokens before and after every text in its prompt's; None where they are not the same around all."""

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    first, own = list(texts[0][1]), encode(texts[0][0])
    for start in range(len(first) - len(own) + 1):
        before, behind = first[:start], first[start + len(own) :]
        if all([*before, *encode(text), *behind] == list(whole) for text, whole in texts):
            return before, behind
    return None


def is_framed(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json puts tokens behind a text, which of ours those with a template alone do."""
    try:
        single = data["post_processor"]["single"]
        return isinstance(single, list) and bool(single) and "SpecialToken" in single[-1]
    except (KeyError, TypeError):
        return False


def read_framed(path: Path) -> Tokenizer | None:
    """The tokenizer.json of a bundle with its template, or None where it has none. Raises InputError."""
    from tokenizers import Tokenizer

    data = read_tokenizer_json(path)
    if not is_framed(data):
        return None
    try:
        with refuse_panics(f"{path} cannot be read"):
            backend = Tokenizer.from_str(json.dumps(data))
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); get it again") from error
    backend.encode_special_tokens = False
    return backend
