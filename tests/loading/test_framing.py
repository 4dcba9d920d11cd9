"""A tokenizer that puts a template around a text: where the tokens are those of the whole prompt, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import WORDS, byte_level, sentencepiece
from tokenizers import Tokenizer

from exporter.errors import InputError
from exporter.loading.sources.framing import frame_tokenizer, is_framed, read_framed
from exporter.loading.sources.reading import settle_backend
from exporter.tasks.template import Template

TEXTS = [" ".join(WORDS[i : i + 4]) for i in range(8)]
KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "byte level": byte_level,
    "byte level, a space before": lambda: byte_level(prefix=True),
    "sentencepiece": sentencepiece,
    "metaspace": lambda: sentencepiece(metaspace=True),
}


def make(kind: str) -> Tokenizer:
    return settle_backend(Tokenizer.from_str(json.dumps(KINDS[kind]())), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "template", [Template("the: ", " is"), Template("the:", "\nis:"), Template("", "\nis:")], ids=repr
)
def test_a_bare_text_is_read_as_its_prompt_or_there_is_no_frame(kind: str, template: Template, tmp_path: Path) -> None:
    plain = make(kind)
    readings = [(template.fill(text), plain.encode(template.fill(text)).ids) for text in TEXTS]
    framed = frame_tokenizer(plain, template, readings)
    if framed is None:  # a word right behind another's sign has other tokens than alone
        assert (kind, template.prefix) in (
            ("byte level, a space before", "the:"), ("sentencepiece", "the:"), ("metaspace", "the:"),
        )  # fmt: skip
        return
    framed.save(str(tmp_path / "tokenizer.json"))
    read = read_framed(tmp_path / "tokenizer.json")
    assert read is not None and is_framed(json.loads((tmp_path / "tokenizer.json").read_text()))
    for text in [*TEXTS, "dog runs to Paris", "cat"]:
        assert read.encode(text).ids == plain.encode(template.fill(text)).ids
        assert read.encode(f"{text} \n").ids == read.encode(text).ids
    assert plain.encode("cat").ids != framed.encode("cat").ids  # the tokenizer that was given is as it was


def test_one_prompt_that_is_read_otherwise_is_enough_for_none() -> None:
    plain, template = make("byte level"), Template("the: ", " is")
    readings = [(template.fill(text), plain.encode(template.fill(text)).ids) for text in TEXTS]
    assert frame_tokenizer(plain, template, readings) is not None
    prompt, ids = readings[5]
    assert frame_tokenizer(plain, template, [*readings[:5], (prompt, [*ids[:3], 7, *ids[4:]]), *readings[6:]]) is None
    assert frame_tokenizer(plain, template, []) is None


def test_a_tokenizer_without_a_frame_is_none(tmp_path: Path) -> None:
    make("byte level").save(str(tmp_path / "tokenizer.json"))
    assert read_framed(tmp_path / "tokenizer.json") is None
    for damage in ({}, {"post_processor": None}, {"post_processor": {"single": 3}}, {"post_processor": {"single": []}}):
        assert not is_framed(damage)
    with pytest.raises(InputError, match="cannot read"):
        read_framed(tmp_path / "other.json")
