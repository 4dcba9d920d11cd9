"""What tasks ask of a tokenizer: the tokens of a text, and the special tokens that it puts before one."""

from __future__ import annotations

from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks use."""

    bos_token_id: Any
    eos_token_id: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Token ids of a text."""

    def decode(self, token_ids: list[int]) -> Any:
        """Text of token ids."""


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a text, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def find_lead(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text of its own accord."""
    for text in ("a", "1", ""):
        try:
            plain, ids = encode_text(tokenizer, text), tuple(tokenizer.encode(text, add_special_tokens=True))
        except Exception:  # a vocabulary of whole words, without a token for others, has none for this text
            continue
        starts = [i for i in range(len(ids)) if ids[i : i + len(plain)] == plain]
        if plain and starts:
            return ids[: starts[0]]
        if not text:
            return ids
    return ()
