"""Tokenizers of GGUF files: GPT-2's lists give GPT-2's tokenizer, and each splitting rule its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from exporter.errors import InputError
from exporter.loading.load import bundled_path
from exporter.loading.sources.gguf_tokenizer import load_gguf_tokenizer

TEXT = "The year 1732 to 17 (CE) -- it's  \n\n\t naïve 日本語 don't<|endoftext|>Mary"


@pytest.fixture(scope="module")
def lists() -> dict[str, Any]:
    """The lists of GPT-2's tokenizer as a GGUF file has them."""
    model = json.loads((bundled_path() / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    found = {
        "model": "gpt2",
        "tokens": tokens,
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "token_type": [3 if token == "<|endoftext|>" else 1 for token in tokens],
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def build(lists: dict[str, Any], **settings: Any) -> Any:
    tokenizer = load_gguf_tokenizer(
        lists | {f"tokenizer.ggml.{name}": value for name, value in settings.items()}, Path("m.gguf")
    )
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"]) == TEXT
    return tokenizer


def test_gpt2s_lists_give_gpt2s_tokenizer(lists: dict[str, Any]) -> None:
    wanted = AutoTokenizer.from_pretrained(bundled_path())(TEXT)["input_ids"]
    tokenizer = build(lists)
    assert tokenizer(TEXT)["input_ids"] == wanted
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.vocab_size) == ("<|endoftext|>", None, 50257)
    assert build(lists, add_bos_token=False)(TEXT)["input_ids"] == wanted
    assert build(lists, add_bos_token=True)(TEXT)["input_ids"] == [50256, *wanted]


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        ("gpt-2", ["17", "32", "("]),
        ("smollm", ["1", "7", "3", "2", "("]),
        ("llama-bpe", ["173", "2", "("]),
        ("qwen2", ["1", "7", "3", "2", "("]),
    ],
)
def test_the_rule_says_how_digits_are_split(rule: str, tokens: list[str], lists: dict[str, Any]) -> None:
    assert build(lists, pre=rule).tokenize("1732(") == tokens


def test_a_token_that_a_user_defined_is_never_split(lists: dict[str, Any]) -> None:
    tokens = [*lists["tokenizer.ggml.tokens"], "xqz"]
    kinds = [*lists["tokenizer.ggml.token_type"], 4]
    assert build(lists, tokens=tokens, token_type=kinds).tokenize("axqz") == ["a", "xqz"]


def test_an_unknown_rule_is_refused_and_no_tokenizer_is_none(lists: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"unknown rule 'odd' \(known: gpt-2, smollm, llama-bpe, qwen2\); give"):
        build(lists, pre="odd")
    assert load_gguf_tokenizer({}, Path("m.gguf")) is None


@pytest.mark.parametrize(
    ("pre", "said", "added"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("llama-bpe", True, True),
        ("gpt-2", None, False),
        ("smollm", None, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_a_first_token_is_added_as_llama_cpp_does(
    pre: str, said: bool | None, added: bool, lists: dict[str, Any]
) -> None:
    """llama-vocab.cpp: what the file says, else by the rule that splits text; an end of text is appended to none."""
    tokenizer = build(lists, pre=pre, add_bos_token=said, add_eos_token=True)
    plain = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert tokenizer("the")["input_ids"] == [50256] * added + plain
    assert tokenizer.backend_tokenizer.encode("the").ids == [50256] * added + plain


def test_a_first_token_that_is_not_named_is_refused(lists: dict[str, Any]) -> None:
    for token in (None, 10**6, -1):
        with pytest.raises(InputError, match=r"does not name \(tokenizer\.ggml\.bos_token_id\)"):
            build(lists, pre="llama-bpe", bos_token_id=token)


@pytest.fixture
def pieces() -> dict[str, Any]:
    """SentencePiece's lists as llama.cpp's converter writes them, and no setting that has a default."""
    data = sentencepiece()["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    rank = {"".join(pair.split(" ")): place for place, pair in enumerate(data["merges"])}
    kinds = {0: 2, 1: 3, 2: 3}
    found = {
        "model": "llama",
        "tokens": tokens,
        "scores": [-float(rank.get(token, 10**6)) for token in tokens],
        "token_type": [kinds.get(i, 6 if token.startswith("<0x") else 1) for i, token in enumerate(tokens)],
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def test_sentencepieces_lists_give_its_tokenizer(pieces: dict[str, Any]) -> None:
    tokenizer = load_gguf_tokenizer(pieces, Path("m.gguf"))
    assert tokenizer is not None
    plain = Tokenizer.from_str(json.dumps(sentencepiece()))
    for text in ("the cat sits", " the dog", "Paris é 日", "<s> the cat", "a</s>the", "ttthhhe  cat\n"):
        assert list(tokenizer.encode(text)) == plain.encode(text).ids
        assert "s>" in text or tokenizer.decode(plain.encode(text, add_special_tokens=False).ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, ["<s>", "▁the", "▁cat"]),
        ({"add_bos_token": False}, ["▁the", "▁cat"]),
        ({"add_eos_token": True}, ["<s>", "▁the", "▁cat"]),
        ({"bos_token_id": 2}, ["</s>", "▁the", "▁cat"]),
        ({"add_space_prefix": False}, ["<s>", "t", "h", "e", "▁cat"]),
    ],
)
def test_what_sentencepieces_file_says_is_followed(
    settings: dict[str, Any], ids: list[str], pieces: dict[str, Any]
) -> None:
    named = {f"tokenizer.ggml.{name}": value for name, value in settings.items()}
    tokenizer = load_gguf_tokenizer(pieces | named, Path("m.gguf"))
    assert tokenizer is not None
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the cat")) == ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "bert"}, r"of the unknown kind 'bert' \(known: gpt2, llama\)"),
        ({"scores": None}, r"has no scores \(tokenizer\.ggml\.scores\)"),
        ({"tokens": ["<unk>", "<s>", "x" * 5000], "token_type": [2, 3, 1]}, "one of its tokens has 5,000 characters"),
    ],
)
def test_lists_that_make_no_tokenizer_are_refused(
    settings: dict[str, Any], message: str, pieces: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=message):
        load_gguf_tokenizer(pieces | {f"tokenizer.ggml.{n}": value for n, value in settings.items()}, Path("m.gguf"))
