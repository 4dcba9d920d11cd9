"""A checkpoint folder, checked before it is trusted: config.json, safetensors and tokenizer.

transformers fills what it misses with random numbers and warns; we refuse. Names and shapes are
compared with the configuration's on the meta device, so that a wrong or hostile configuration costs no
memory. No pickle is read and no code of the checkpoint runs.
"""

from __future__ import annotations

import hashlib
import json
import logging as stdlib_logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.errors import InputError
from exporter.families import FAMILIES
from exporter.hub import TOKENIZERS, WEIGHTS, WEIGHTS_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LFS_POINTER = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a known family. Raises InputError."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds an adapter; merge it into its base model and give the merged checkpoint")
    data = _read_json(path)
    _refuse_code(data, path)
    if "quantization_config" in data:
        raise InputError(f"{path}: the weights are quantized; give a checkpoint in fp32, fp16 or bf16")
    known = ", ".join(f"{name} ({family.architecture})" for name, family in FAMILIES.items())
    model_type, architectures = data.get("model_type"), data.get("architectures")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{path}: unknown model_type {model_type!r}; known: {known}")
    if architectures and FAMILIES[model_type].architecture not in architectures:
        raise InputError(f"{path}: architecture {architectures} is no language model that is known; known: {known}")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises its own, pydantic-like and plain errors alike
        raise InputError(f"{path} does not fit {model_type}: {_one_line(error)}") from error
    _check_sizes(config, path)
    FAMILIES[model_type].check_config(config)
    return config


def _check_sizes(config: Any, path: Path) -> None:
    for field in _SIZES:
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {field} is {value!r}; it must be an integer from 1")
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{path}: {config.num_attention_heads} heads do not divide d_model {config.hidden_size}; mend config.json"
        )
    epsilon = getattr(config, "layer_norm_epsilon", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise InputError(f"{path}: layer_norm_epsilon is {epsilon!r}; it must be a number above 0")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, sorted by name. Raises InputError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        weight_map = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise InputError(f"{folder / WEIGHTS_INDEX} has no usable 'weight_map'; get the checkpoint again")
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise InputError(f"{folder} lacks {absent[0]}, which its index names; get the checkpoint again")
        return [folder / name for name in names]
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise InputError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which is never read; "
            f"convert it to {WEIGHTS} (save_pretrained of a recent transformers does)"
        )
    raise InputError(f"{folder} has no {WEIGHTS}; give a checkpoint saved with save_pretrained")


def hash_files(paths: Sequence[Path]) -> str:
    """sha256 of the files' bytes, one after the other; for one file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_weights(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model in float32, eval mode, without gradients. Raises InputError."""
    from transformers import AutoModelForCausalLM

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes.update(_read_shapes(path))
    with _quiet_transformers():
        _check_shapes(shapes, config, folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",  # the plain formula: this model is the oracle
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises its own and plain errors alike
            raise InputError(f"{folder} cannot be loaded: {_one_line(error)}") from error
    model.eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{folder}: tensor {name} holds NaN or Inf; the checkpoint is damaged, use another one")
    return model


def load_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights, or None where there is none. Raises InputError."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        _refuse_code(_read_json(settings), settings)
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {_one_line(error)}") from error
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model knows {config.vocab_size}; "
            "it belongs to another model"
        )
    return tokenizer


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, from the file's header."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' there")
    shapes = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it has no iterator
                tensor = tensors.get_slice(name)
                if tensor.get_dtype() not in _FLOATS and not name.endswith((".attn.bias", ".attn.masked_bias")):
                    raise InputError(f"{path}: tensor {name} is {tensor.get_dtype()}; known: fp32, fp16, bf16, fp64")
                shapes[name] = tuple(tensor.get_shape())
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file ({_one_line(error)}); get it again") from error
    return shapes


def _check_shapes(found: dict[str, tuple[int, ...]], config: Any, folder: Path) -> None:
    """Raise InputError unless every tensor that the configuration calls for is there, in its shape."""
    from transformers import AutoModelForCausalLM

    if config.num_hidden_layers > len(found):  # else the line below may build layers for hours
        raise InputError(
            f"{folder}: config.json names {config.num_hidden_layers} layers, but the weights are {len(found)} tensors"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers and torch raise what they like on absurd sizes
        raise InputError(f"{folder / 'config.json'} describes no possible model: {_one_line(error)}") from error
    prefix = model.base_model_prefix + "."
    embedding = model.get_input_embeddings().weight.shape
    for name, tensor in model.state_dict().items():
        shape = found.get(name, found.get(name.removeprefix(prefix)))  # GPT-2's own files lack the prefix
        if shape is None:
            if config.tie_word_embeddings and name.endswith("lm_head.weight") and tensor.shape == embedding:
                continue
            raise InputError(f"{folder} lacks the tensor {name}; get the whole checkpoint")
        if shape != tuple(tensor.shape):
            raise InputError(f"{folder}: tensor {name} is {shape}, but config.json makes it {tuple(tensor.shape)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}; give a checkpoint saved with save_pretrained") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({_one_line(error)}); get the checkpoint again") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a JSON object, not {type(data).__name__}; get the checkpoint again")
    return data


def _refuse_code(data: dict[str, Any], path: Path) -> None:
    if "auto_map" in data:
        raise InputError(f"{path} names code of its own (auto_map), which is never run; give a plain checkpoint")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:140] or type(error).__name__


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers' log lines, warnings and progress bars are off within the context, as before after it."""
    from transformers.utils import logging

    verbosity, bars_were_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(stdlib_logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_were_on:
            logging.enable_progress_bar()
