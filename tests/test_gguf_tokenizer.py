"""Tokenizers of GGUF files: GPT-2's lists give GPT-2's tokenizer, and each splitting rule its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from exporter.errors import InputError
from exporter.loading import bundled_path
from exporter.sources.gguf_tokenizer import load_gguf_tokenizer

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
