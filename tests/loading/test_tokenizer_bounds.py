"""What a tokenizer.json can make of a text is bounded before any text is read with it."""

from __future__ import annotations

import base64
import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import byte_level, make_template, sentencepiece, word_level, write_files
from tokenizers import Tokenizer

from exporter.errors import InputError
from exporter.loading.load import bundled_path
from exporter.loading.sources.reading import read_tokenizer
from exporter.loading.sources.tokenizer_bounds import check_bounds

END = {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def match(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": old}, "content": new}


def chain(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def precompile(text: bytes) -> dict[str, Any]:
    """A table whose trie is empty, with one text."""
    table = struct.pack("<I", 4) + bytes(4) + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def nest(depth: int) -> dict[str, Any]:
    part = replace("a", "b")
    for _ in range(depth):
        part = chain(part)
    return part


GROWING: dict[str, tuple[dict[str, Any], str]] = {
    "a megabyte for a letter": ({"normalizer": replace("a", "a" * 10**6)}, "normalizer can make 1,000,000 characters"),
    "doubled forty times": ({"normalizer": chain(*[replace("a", "aa")] * 40)}, "normalizer can make 1,099,511"),
    "from letter to letter": (
        {"normalizer": chain(*(replace(chr(97 + i), chr(98 + i) * 4) for i in range(10)))},
        "normalizer can make",
    ),
    "hidden by lower case": (
        {"normalizer": chain(*[replace("A", "aaaa"), {"type": "Lowercase"}, replace("a", "AAAA")] * 5)},
        "normalizer can make",
    ),
    "between any two": ({"normalizer": match("", "x" * 300)}, "normalizer can make 601"),
    "any character": ({"normalizer": match(".", "xy" * 300)}, "normalizer can make 1,201"),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}, "normalizer can make 1,001"),
    "a prefix that grows": (
        {"normalizer": chain({"type": "Prepend", "prepend": "ab"}, *[replace("b", "bb")] * 20)},
        "normalizer can make",
    ),
    "a table of long texts": ({"normalizer": precompile(b"x" * 5000)}, "normalizer can make 5,000"),
    "a damaged table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "%"}}, "table that is damaged"),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 20}},
        "pre_tokenizer can make",
    ),
    "marks of marks": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}] * 20}},
        "pre_tokenizer can make",
    ),
    "decoded to more": ({"decoder": replace("a", "a" * 1000)}, "decoder can make 1,000"),
    "many tokens before": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}] * 100 + [{"Sequence": {"id": "A"}}],
                "special_tokens": END,
            }
        },
        "puts 100 tokens around each text",
    ),
    "one name for many tokens": (
        {"post_processor": make_template(first="<|end|>") | {"special_tokens": {"<|end|>": {"ids": [0] * 10**6}}}},
        "puts 1,000,000 tokens",
    ),
    "the text twice": (
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 2}},
        "gives the text 2 times",
    ),
    "the text never": ({"post_processor": {"type": "TemplateProcessing", "single": []}}, "gives the text 0 times"),
    "a token that is a book": ({"added_tokens": [{"content": "x" * 5000}]}, "one of its tokens has 5,000 characters"),
    "a long affix": ({"model": {"continuing_subword_prefix": "#" * 5000}}, "prefix has 5,000 characters"),
    "long words": ({"model": {"max_input_chars_per_word": 10**9}}, "cuts words of up to 1,000,000,000"),
    "parts in parts": ({"normalizer": nest(100)}, "nests its components without end"),
    "a pattern without end": ({"pre_tokenizer": split("(a+)+$")}, r"pattern '\(a\+\)\+\$' cannot be matched|seconds"),
    "another": ({"pre_tokenizer": split("(x+x+)+y")}, "cannot be matched|seconds"),
    "in a normaliser": ({"normalizer": match("( +)+z", "")}, "cannot be matched|seconds"),
    "no pattern": ({"pre_tokenizer": split("(")}, "cannot be matched"),
    "no normaliser": ({"normalizer": 3}, "cannot be loaded: tokenizer.json is of no known form"),
    "no model": ({"model": {"vocab": 7}}, "cannot be loaded: tokenizer.json is of no known form"),
}


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_without_bound_is_refused_before_it_is_read(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = GROWING[name]
    model = change.get("model", {})
    folder = write_files(tmp_path / "m", byte_level(**{k: v for k, v in change.items() if k != "model"}, model=model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        read_tokenizer(folder / "tokenizer.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert capfd.readouterr() == ("", "")


SOUND: dict[str, dict[str, Any]] = {
    "GPT-2's": byte_level(),
    "Llama 2's": sentencepiece(),
    "Llama 3's": byte_level(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split(LLAMA3), {"type": "ByteLevel", "use_regex": False}]}
    ),
    "ALBERT's": word_level(
        normalizer=chain(
            replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            precompile("صلى الله عليه وسلم".encode()), match(" {2,}", " "),
        )
    ),
    "names of white space": word_level(normalizer=chain(replace("\n", "<n>"), replace("\t", "<|tab|>"))),
    "many replacements apart": word_level(normalizer=chain(*(replace(c, c.upper() * 3) for c in "abcdefghijklmnop"))),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_real_tokenizers_do_is_not_refused(name: str) -> None:
    check_bounds(SOUND[name], Path("tokenizer.json"))


def test_the_bundled_tokenizer_is_read(tmp_path: Path) -> None:
    path = bundled_path() / "tokenizer.json"
    assert read_tokenizer(path).encode("The cat").ids == Tokenizer.from_file(str(path)).encode("The cat").ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "must be a JSON object, not list"),
        (json.dumps(byte_level() | {"version": "9.9", "pre_tokenizer": {"type": "Odd"}}).encode(), "cannot be read"),
    ],
)
def test_a_spoilt_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="cannot read"):
        read_tokenizer(tmp_path / "no.json")
