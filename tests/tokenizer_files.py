"""Small tokenizers of every kind as their files, for tests of how a text is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ["the", "cat", "sits", "on", "a", "mat", "and", "dog", "runs", "to", "old", "tree", "Paris", "is", "paris"]
SPACE = "\u2581"


def _merge(words: list[str], vocabulary: dict[str, int]) -> list[str]:
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = f"{word[: end - 1]} {word[end - 1]}"
            if pair not in merges:
                merges.append(pair)
            vocabulary.setdefault(word[:end], len(vocabulary))
    return merges


def special(*names: str) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": index, "content": name, **flags} for index, name in enumerate(names)]


def make_template(*, first: str | None = None, last: str | None = None, first_id: int = 0, last_id: int = 0) -> Any:
    def piece(name: str | None) -> list[dict[str, Any]]:
        return [] if name is None else [{"SpecialToken": {"id": name, "type_id": 0}}]

    known = {name: i for name, i in ((first, first_id), (last, last_id)) if name is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*piece(first), {"Sequence": {"id": "A", "type_id": 0}}, *piece(last)],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in known.items()},
    }


def byte_level(*, prefix: bool = False, **changes: Any) -> dict[str, Any]:
    """GPT-2's kind: bytes as letters, words with the space before them."""
    from tokenizers import pre_tokenizers

    vocabulary = {"<|end|>": 0, "<s>": 1}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = _merge(["\u0120" + word for word in WORDS] + WORDS[:1], vocabulary)
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    return _finish({"vocab": vocabulary, "merges": merges}, special("<|end|>", "<s>"), level, level, changes)


def sentencepiece(*, metaspace: bool = False, **changes: Any) -> dict[str, Any]:
    """Llama 2's kind: spaces as a mark before words; unknown characters as bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in (SPACE, *sorted(set("".join(WORDS)))):
        vocabulary[letter] = len(vocabulary)
    merges = _merge([SPACE + word for word in WORDS], vocabulary)
    model = {"vocab": vocabulary, "merges": merges, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replaced]}
    marks = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    changes = {"post_processor": make_template(first="<s>", first_id=1)} | changes
    if not metaspace:
        changes = {"normalizer": normalizer} | changes
    return _finish(model, special("<unk>", "<s>", "</s>"), marks if metaspace else None, decoder, changes)


def word_level(**changes: Any) -> dict[str, Any]:
    """Whole words, and one token for all others."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", *WORDS])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    return _finish(model, special("<unk>", "<s>"), {"type": "WhitespaceSplit"}, None, changes)


def _finish(model: Any, added: Any, splitter: Any, decoder: Any, changes: dict[str, Any]) -> dict[str, Any]:
    if "type" not in model:
        defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
        model = {"type": "BPE"} | defaults | flags | model
    if "model" in changes:
        model |= changes.pop("model")
    empty = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    parts = {"added_tokens": added, "pre_tokenizer": splitter, "decoder": decoder}
    return empty | parts | changes | {"model": model}


def write_files(folder: Path, data: dict[str, Any], *, model_type: str = "gpt2", **settings: Any) -> Path:
    """The tokenizer's files in a new folder, with as much of a config.json as says what they belong to."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder
