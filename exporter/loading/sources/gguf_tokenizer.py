"""The tokenizer of a GGUF file, rebuilt from its lists.

transformers rebuilds it too, but its versions disagree about what stands before a text, and all of them ignore how
the text is split before merging (`tokenizer.ggml.pre`). So it is put together here, rule by rule: byte-level BPE
("gpt2") and SentencePiece's BPE ("llama"). What a file does not say is as llama.cpp takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError, refuse_panics
from exporter.loading.sources.configuration import one_line
from exporter.loading.sources.tokenizer import settle
from exporter.loading.sources.tokenizer_bounds import check_token_lengths

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

LISTS = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
)
"""The settings that `load_gguf_tokenizer` needs as lists."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # kinds in token_type
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}  # of files that do not say, by tokenizer.ggml.model
_MERGES_LATER = ("llama-bpe",)  # a word that is a token is taken whole (ignore_merges)
_ADDS_BOS = ("llama-bpe",)  # of the rules in _SPLITS; other BPE puts nothing before a text
_SPACE = "\u2581"  # SentencePiece's
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_gguf_tokenizer(settings: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer, settled, or None where the file has none. Raises InputError for one of an unknown kind."""
    kind = settings.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind not in _BUILDERS:
        raise InputError(
            f"the tokenizer in {path} is of the unknown kind {kind!r} (known: {', '.join(_BUILDERS)}); give the "
            "model's safetensors checkpoint"
        )
    try:
        check_token_lengths(settings["tokenizer.ggml.tokens"], path)
        with refuse_panics(f"the tokenizer in {path} cannot be loaded"):
            return settle(_wrap(_BUILDERS[kind](settings, path), settings, path), path)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer in {path} cannot be loaded: {one_line(error)}") from error


def _wrap(tokenizer: Tokenizer, settings: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase:
    """Special tokens, those before a text among them, and what transformers wants to know."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    tokens = settings["tokenizer.ggml.tokens"]
    kinds = list(enumerate(settings.get("tokenizer.ggml.token_type", [])))
    special = [tokens[i] for i, kind in kinds if kind in (_CONTROL, _UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    own = [tokens[i] for i, kind in kinds if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    ids = {name: _find_id(settings, key) for name, key in _NAMED.items()}
    names = {name: tokens[token] for name, token in ids.items() if token is not None}
    if _adds_bos(settings):
        first = ids["bos_token"]
        if first is None:
            raise InputError(
                f"the tokenizer in {path} begins each text with a token that the file does not name "
                "(tokenizer.ggml.bos_token_id); convert the model again"
            )
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["BOS", "$A"],
            pair=["BOS", "$A", "$B"],
            special_tokens=[{"id": "BOS", "ids": [first], "tokens": [tokens[first]]}],
        )
    template = settings.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **names,
        **({"chat_template": template} if isinstance(template, str) and template else {}),
    )


def _find_id(settings: Mapping[str, Any], key: str) -> int | None:
    """A named token's id: the file's where it is one of its tokens, else what llama.cpp takes."""
    n_tokens = len(settings["tokenizer.ggml.tokens"])
    default = _DEFAULT_IDS.get(settings["tokenizer.ggml.model"], {}).get(key)
    for token in (settings.get(f"tokenizer.ggml.{key}_token_id"), default):
        if isinstance(token, int) and 0 <= token < n_tokens:
            return token
    return None


def _adds_bos(settings: Mapping[str, Any]) -> bool:
    """Whether the first token stands before each text. An end of text is appended to none."""
    said = settings.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    return settings["tokenizer.ggml.model"] == "llama" or settings.get("tokenizer.ggml.pre") in _ADDS_BOS


def _build_bpe(settings: Mapping[str, Any], path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    split = settings.get("tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise InputError(
            f"the tokenizer in {path} splits text by the unknown rule {split!r} (known: {', '.join(_SPLITS)}); "
            "give the model's safetensors checkpoint"
        )
    tokens = settings["tokenizer.ggml.tokens"]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(line.split(" ", 1)) for line in settings["tokenizer.ggml.merges"]],
        ignore_merges=split in _MERGES_LATER,
    )
    tokenizer = Tokenizer(model)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_sentencepiece(settings: Mapping[str, Any], path: Path) -> Tokenizer:
    """BPE whose merges are those that make a token, the likeliest token first; unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = settings["tokenizer.ggml.tokens"]
    scores = settings.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise InputError(f"the tokenizer in {path} has no scores (tokenizer.ggml.scores); convert the model again")
    ids = {token: index for index, token in enumerate(tokens)}
    unknown = _find_id(settings, "unknown")
    model = models.BPE(
        vocab=ids,
        merges=_find_merges(tokens, ids, scores),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefixed = bool(settings.get("tokenizer.ggml.add_space_prefix", True))
    before: list[Any] = [normalizers.Prepend(_SPACE)] if prefixed else []
    after: list[Any] = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    decoded = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoded, *after])
    return tokenizer


def _find_merges(tokens: Sequence[str], ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    merges = []
    for token in sorted(tokens, key=lambda token: -scores[ids[token]]):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Path], Any]] = {"gpt2": _build_bpe, "llama": _build_sentencepiece}


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
