"""The tokenizer of a GGUF file, rebuilt from its lists.

transformers rebuilds it too, but its versions disagree: about a first token that the file does not want
(`add_bos_token`), and all of them ignore how the text is split before merging (`tokenizer.ggml.pre`).
Byte-level BPE is therefore put together here, rule by rule; SentencePiece is left to transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError
from exporter.sources.configuration import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LISTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
"""The settings that `load_gguf_tokenizer` needs as lists."""

_CONTROL, _USER_DEFINED = 3, 4  # kinds in token_type
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_gguf_tokenizer(settings: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None where the file has none. Raises InputError for one of an unknown kind."""
    kind = settings.get("tokenizer.ggml.model")
    if kind is None:
        return None
    try:
        return _build_bpe(settings, path) if kind == "gpt2" else _ask_transformers(path)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer in {path} cannot be loaded: {one_line(error)}") from error


def _build_bpe(settings: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = settings["tokenizer.ggml.tokens"]
    pairs = [tuple(line.split(" ", 1)) for line in settings["tokenizer.ggml.merges"]]
    split = settings.get("tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise InputError(
            f"the tokenizer in {path} splits text by the unknown rule {split!r} (known: {', '.join(_SPLITS)}); "
            "give the model's safetensors checkpoint"
        )
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=pairs,
        ignore_merges=split == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(enumerate(settings.get("tokenizer.ggml.token_type", [])))
    tokenizer.add_special_tokens([_added(AddedToken, tokens[i], special=True) for i, kind in kinds if kind == _CONTROL])
    tokenizer.add_tokens([_added(AddedToken, tokens[i], special=False) for i, kind in kinds if kind == _USER_DEFINED])
    names = {
        name: tokens[settings[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in _NAMED.items()
        if f"tokenizer.ggml.{key}_token_id" in settings
    }
    if settings.get("tokenizer.ggml.add_bos_token", False):
        first = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, settings["tokenizer.ggml.bos_token_id"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **names,
        **({"chat_template": template} if (template := settings.get("tokenizer.chat_template")) else {}),
    )


def _added(kind: Any, token: str, *, special: bool) -> Any:
    return kind(token, special=special, normalized=False)


def _split_gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split_smollm() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _split_gpt2()])


def _split_words(number: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    pattern = Regex(_WORDS.replace("NUMBER", number))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# By tokenizer.ggml.pre; the rules are those that the models' own tokenizer.json have.
_SPLITS: dict[str, Callable[[], Any]] = {
    "gpt-2": _split_gpt2,
    "smollm": _split_smollm,
    "llama-bpe": lambda: _split_words(r"\p{N}{1,3}"),
    "qwen2": lambda: _split_words(r"\p{N}"),
}


def _ask_transformers(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True
    )
    return tokenizer
