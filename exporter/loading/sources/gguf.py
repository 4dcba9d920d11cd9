"""GGUF files: checked by our own reading of their head, then dequantised by transformers.

transformers skips tensors and settings that it does not know, and takes defaults for what is missing; both
would give another model without a word. So we read the head first (`gguf_header`), let only settings pass that
transformers honours (`gguf_settings`), and hold the tensors against those of the model that the settings make.
"""

from __future__ import annotations

import io
import math
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.errors import InputError
from exporter.loading.sources.checkpoint import finish_model
from exporter.loading.sources.configuration import check_config, check_family, one_line
from exporter.loading.sources.gguf_header import GgufHeader, describe_types, read_header
from exporter.loading.sources.gguf_settings import WINDOW, check_settings, get_d_head
from exporter.loading.sources.gguf_tokenizer import LISTS, load_gguf_tokenizer
from exporter.loading.sources.quiet import quiet_transformers
from exporter.loading.sources.tokenizer import check_tokenizer
from exporter.loading.sources.weights import build_empty

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["describe_types", "load_gguf", "load_tokenizer", "read_header"]

_NO_TOKEN = 2**32 - 1  # llama.cpp's -1


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Configuration, dequantised model and tokenizer of a GGUF file of a known family. Raises InputError."""
    header = read_header(path)
    check_settings(header, path)
    with quiet_transformers(), redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        config = _load_config(header, path)
        _check_tensors(header, config, path)
        model = _load_model(config, path, dtype)
    tokenizer = _build_tokenizer(header, path)
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, path)
    return model.config, finish_model(model, path, dtype), tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer alone, or None where the file has none. Raises InputError."""
    return _build_tokenizer(read_header(path), path)


def _build_tokenizer(header: GgufHeader, path: Path) -> PreTrainedTokenizerBase | None:
    if header.settings.get("tokenizer.ggml.model") == "gpt2":  # byte-level BPE, of whatever model
        for name in LISTS[:2]:
            if not isinstance(header.settings.get(name), list):
                raise InputError(
                    f"{path}: its tokenizer has no {name.rsplit('.', 1)[1]} ({name}), without which no text becomes "
                    "tokens; convert the model again with its tokenizer, or give its safetensors checkpoint"
                )
    settings = {name: value for name, value in header.settings.items() if value != _NO_TOKEN}
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        return load_gguf_tokenizer(settings, path)


def _load_config(header: GgufHeader, path: Path) -> PreTrainedConfig:
    """transformers' configuration, with what it forgets to take over."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # transformers and gguf raise what they like
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    check_family(config.model_type, None, path)
    if config.model_type == "gpt2":
        config.n_positions, config.n_inner = header.get("context_length"), header.get("feed_forward_length")
    else:
        config.head_dim = get_d_head(header)
        if window := header.get(WINDOW):  # transformers attends to everything, which is the same up to there
            config.max_position_embeddings = min(config.max_position_embeddings, window)
    if getattr(config, "pad_token_id", None) == _NO_TOKEN:
        config.pad_token_id = None
    check_config(config, path)
    return config  # type: ignore[no-any-return]  # transformers does not say


def _check_tensors(header: GgufHeader, config: Any, path: Path) -> None:
    """Raise InputError unless the file's tensors have together just the numbers that the model has."""
    if "rope_freqs.weight" in header.shapes:
        raise InputError(
            f"{path} scales its rotary frequencies (rope_freqs.weight), which does not come through when a GGUF file "
            "is loaded; give the model's safetensors checkpoint"
        )
    if config.num_hidden_layers > len(header.shapes):  # else build_empty may build layers for hours
        raise InputError(f"{path} names {config.num_hidden_layers} layers, but has {len(header.shapes)} tensors")
    model = build_empty(config, path)
    wanted = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    names = _name_tensors(header, list(wanted), config.num_hidden_layers)
    if lacking := sorted(names - header.shapes.keys()):
        raise InputError(f"{path} lacks the tensor {lacking[0]}; get the file again")
    if names and (extra := sorted(header.shapes.keys() - names)):
        raise InputError(
            f"{path}: the model that its settings make has no place for the tensor {extra[0]}; give the model's "
            "safetensors checkpoint"
        )
    has, needs = sum(map(math.prod, header.shapes.values())), sum(wanted.values())
    if len(header.shapes) != len(wanted) or has != needs:
        raise InputError(
            f"{path} has {len(header.shapes)} tensors of {has} numbers, but its settings make a model of {len(wanted)} "
            f"tensors of {needs}; get the file again, or give the model's safetensors checkpoint"
        )


def _name_tensors(header: GgufHeader, names: list[str], n_layers: int) -> set[str]:
    """GGUF's names of a model's tensors; none where the package gguf does not know them all."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(number for number, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    mapping = get_tensor_name_map(architecture, n_layers)
    named = {mapping.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name for name in named if name} if None not in named else set()


def _load_model(config: Any, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            attn_implementation="eager",  # the plain formula: this model is the oracle
            local_files_only=True,
            output_loading_info=True,
            **_dequantise(),
        )
    except Exception as error:  # transformers, gguf and numpy raise what they like
        raise InputError(f"{path} cannot be loaded: {one_line(error)}") from error
    model, info = loaded
    if missing := sorted(map(str, info["missing_keys"])):
        raise InputError(f"{path} lacks the tensor {missing[0]}; get the file again")
    # transformers 5 marks the model as quantised though nothing is left packed
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if hasattr(owner, name):
            delattr(owner, name)
    return model  # type: ignore[no-any-return]  # transformers does not say


def _dequantise() -> dict[str, Any]:
    """The argument that keeps transformers 5 from leaving weights packed, which version 4 never does."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
