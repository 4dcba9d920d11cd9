"""The settings of a GGUF file: those that come through when transformers loads it, and all others refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exporter.errors import InputError
from exporter.loading.sources.configuration import REFUSED
from exporter.loading.sources.gguf_header import GgufHeader

# Architectures by GGUF's names: those that transformers reads and that we have an adapter for.
_ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
# Where GGUF's name of what we refuse is not transformers' model_type.
_OTHER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v2"}
WINDOW = "attention.sliding_window"
_HONOURED = {
    "context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size",
    "rope.dimension_count", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    WINDOW, f"{WINDOW}_pattern",  # by us, not by transformers: see `gguf._load_config`
}  # fmt: skip
# Settings that change nothing, where they have these values.
_HARMLESS = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none", "attention.causal": True}
_REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_PART = re.compile(r"(?i)(.*)-(\d+)-of-(\d+)\.gguf")


def check_settings(header: GgufHeader, path: Path) -> None:
    """Raise InputError for an architecture, or a setting of it, that transformers would not load as it is meant."""
    _check_parts(header, path)
    _check_architecture(header, path)
    _check_names(header, path)
    _check_window(header, path)
    _check_numbers(header, path)


def get_d_head(header: GgufHeader) -> Any:
    """The length of a head's queries and keys, in a header whose sizes are checked: set, or an equal share."""
    return header.get("attention.key_length", header.get("embedding_length") // header.get("attention.head_count"))


def _check_parts(header: GgufHeader, path: Path) -> None:
    """Raise InputError for one of several parts of a model."""
    if (part := _PART.fullmatch(path.name)) or header.settings.get("split.count", 1) not in (0, 1):
        n_parts = int(part[3]) if part else header.settings["split.count"]
        first = f"{part[1]}-{'1'.zfill(len(part[2]))}-of-{part[3]}.gguf" if part else "FIRST_PART.gguf"
        if n_parts != 1:
            raise InputError(
                f"{path} is one of {n_parts} parts; merge them: llama-gguf-split --merge {path.parent / first} "
                "whole.gguf"
            )


def _check_architecture(header: GgufHeader, path: Path) -> None:
    """Raise InputError for an architecture that we cannot load."""
    if "general.architecture" not in header.settings:
        raise InputError(f"{path} names no general.architecture; convert the model again")
    architecture = header.architecture
    if architecture not in _ARCHITECTURES:
        reason = REFUSED.get(_OTHER_NAMES.get(architecture, architecture))
        why = f"models of type {architecture} cannot be exported: {reason}" if reason else ""
        raise InputError(
            f"{path}: {why or f'unknown GGUF architecture {architecture!r}'}; known: {', '.join(_ARCHITECTURES)}"
        )


def _check_names(header: GgufHeader, path: Path) -> None:
    """Raise InputError for a setting that transformers ignores, unless its value changes nothing."""
    architecture = header.architecture
    for name, value in header.settings.items():
        if name.startswith(f"{architecture}."):
            name = name.removeprefix(f"{architecture}.")
            if name not in _HONOURED and (name not in _HARMLESS or value != _HARMLESS[name]):
                raise InputError(
                    f"{path}: its setting {architecture}.{name} ({value}) is not honoured when a GGUF file is "
                    "loaded; give the model's safetensors checkpoint"
                )


def _check_window(header: GgufHeader, path: Path) -> None:
    """Raise InputError for a sliding window of no possible length; llama.cpp writes 0 for full attention."""
    window = header.get(WINDOW, 0)
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise InputError(f"{path}: {header.architecture}.{WINDOW} is {window!r}; it must be an integer from 0")
    if window and header.architecture == "gpt2":
        raise InputError(f"{path}: a model of type gpt2 has no {WINDOW} ({window}); get the file again")


def _check_numbers(header: GgufHeader, path: Path) -> None:
    """Raise InputError for a size that is none, or for heads whose queries, keys and values differ in length."""
    architecture = header.architecture
    # without head_count_kv, transformers leaves llama's queries and keys in llama.cpp's order
    for name in (*_REQUIRED, *(("attention.head_count_kv",) if architecture != "gpt2" else ())):
        value = header.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {architecture}.{name} is {value!r}; it must be an integer from 1")
    d_head = get_d_head(header)
    for name in ("attention.value_length", "rope.dimension_count"):
        if header.get(name, d_head) != d_head:
            raise InputError(
                f"{path}: {architecture}.{name} is {header.get(name)}, but heads have {d_head} dimensions, and no "
                "other length comes through; give the model's safetensors checkpoint"
            )
