"""GGUF files: checked by our own reading of their head, then dequantised by transformers.

transformers skips tensors and settings that it does not know, and takes defaults for what is missing; both
would give another model without a word. So the head is read here first (`read_header`), every setting
of the architecture has to be one that is honoured, and the tensors have to make up exactly the model.
"""

from __future__ import annotations

import io
import math
import struct
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from exporter.errors import InputError
from exporter.sources.checkpoint import check_tokenizer, finish_model, quiet_transformers
from exporter.sources.configuration import REFUSED, check_config, check_family, one_line
from exporter.sources.gguf_tokenizer import LISTS, load_gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 24  # a chat template has some kilobytes

# Architectures by GGUF's names: those that both transformers reads and we have an adapter for.
_ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
# Where GGUF's name of what we refuse is not transformers' model_type.
_OTHER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v2"}
_HONOURED = {
    "context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size",
    "rope.dimension_count", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
}  # fmt: skip
_HARMLESS = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none", "attention.causal": True}
_REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count")


@dataclass(frozen=True)
class GgufHeader:
    """The head of a GGUF file: settings (of most arrays their length only), tensors' shapes and types."""

    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    types: frozenset[str]

    @property
    def architecture(self) -> str:
        """GGUF's name of the architecture."""
        return str(self.settings["general.architecture"])

    def get(self, name: str, default: Any = None) -> Any:
        """A setting of the architecture."""
        return self.settings.get(f"{self.architecture}.{name}", default)


def read_header(path: Path) -> GgufHeader:
    """Read and check a file's head. Raises InputError: no GGUF, truncated, of a kind that is not known."""
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path} is truncated or damaged; get it again") from error


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Configuration, dequantised model and tokenizer of a GGUF file of a known family. Raises InputError."""
    header = read_header(path)
    _check_settings(header, path)
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
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        return load_gguf_tokenizer(header.settings, path)


def describe_types(header: GgufHeader) -> str:
    """The quantised kinds of a file's tensors, such as `Q4_1, Q8_0`, or its floats where there are none."""
    floats = {"F32", "F16", "BF16", "F64"}
    return ", ".join(sorted(header.types - floats) or sorted(header.types))


def _read_header(file: BinaryIO, path: Path) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    if file.read(4) != _MAGIC:
        raise InputError(f"{path} is no GGUF file; give a .gguf file, or a checkpoint folder")
    version, n_tensors, n_settings = struct.unpack("<IQQ", file.read(20))
    if version not in _VERSIONS:
        raise InputError(f"{path} is GGUF version {version}, known: 2, 3 (little-endian); convert the model again")
    settings = {}
    for _ in range(min(n_settings, size)):
        name = _read_string(file)
        settings[name] = _read_value(file, size, keep=name in LISTS)
    shapes, types, end = {}, set(), 0
    for _ in range(min(n_tensors, size)):
        name = _read_string(file)
        (n_dims,) = struct.unpack("<I", file.read(4))
        shape = tuple(reversed(struct.unpack(f"<{min(n_dims, 9)}Q", file.read(8 * min(n_dims, 9)))))
        kind, offset = struct.unpack("<IQ", file.read(12))
        try:
            quantisation = GGMLQuantizationType(kind)
            block, n_bytes = GGML_QUANT_SIZES[quantisation]
        except (ValueError, KeyError):
            raise InputError(f"{path}: tensor {name} is of the unknown type {kind}; get the file again") from None
        shapes[name] = shape
        types.add(quantisation.name)
        end = max(end, offset + math.prod(shape) // block * n_bytes)
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment is {alignment!r}; get the file again")
    start = -(-file.tell() // alignment) * alignment
    if start + end > size:
        raise InputError(f"{path} is truncated: it has {size} bytes and should have {start + end}; get it again")
    return GgufHeader(settings, shapes, frozenset(types))


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    data = file.read(min(length, _LONGEST_STRING))
    if len(data) < length:
        raise struct.error("string ends early")
    return data.decode()


def _read_value(file: BinaryIO, size: int, *, keep: bool) -> Any:
    """A setting; of an array that is not kept only its length."""
    (kind,) = struct.unpack("<I", file.read(4))
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        return _read_scalar(file, kind)
    kind, length = struct.unpack("<IQ", file.read(12))
    if length > size:
        raise struct.error("array is longer than the file")
    if not keep and kind in _SCALARS:
        file.seek(length * struct.calcsize(_SCALARS[kind]), io.SEEK_CUR)
        return length
    values = [_read_string(file) if kind == _STRING else _read_scalar(file, kind) for _ in range(length)]
    return values if keep else length


def _read_scalar(file: BinaryIO, kind: int) -> Any:
    if kind not in _SCALARS:
        raise struct.error("value of an unknown kind")
    return struct.unpack(_SCALARS[kind], file.read(struct.calcsize(_SCALARS[kind])))[0]


def _check_settings(header: GgufHeader, path: Path) -> None:
    """Raise InputError for an architecture, or a setting of it, that would not come through."""
    settings = header.settings
    if "general.architecture" not in settings:
        raise InputError(f"{path} names no general.architecture; convert the model again")
    architecture = header.architecture
    if architecture not in _ARCHITECTURES:
        reason = REFUSED.get(_OTHER_NAMES.get(architecture, architecture))
        why = f"models of type {architecture} cannot be exported: {reason}" if reason else ""
        raise InputError(
            f"{path}: {why or f'unknown GGUF architecture {architecture!r}'}; known: {', '.join(_ARCHITECTURES)}"
        )
    if settings.get("split.count", 1) > 1:
        raise InputError(f"{path} is one of {settings['split.count']} parts; merge them (llama-gguf-split --merge)")
    for name, value in settings.items():
        if name.startswith(f"{architecture}."):
            name = name.removeprefix(f"{architecture}.")
            if name not in _HONOURED and (name not in _HARMLESS or value != _HARMLESS[name]):
                raise InputError(
                    f"{path}: its setting {architecture}.{name} ({value}) is not honoured when a GGUF file is "
                    "loaded; give the model's safetensors checkpoint"
                )
    # without head_count_kv, transformers leaves llama's queries and keys in llama.cpp's order
    for name in (*_REQUIRED, *(("attention.head_count_kv",) if architecture != "gpt2" else ())):
        value = header.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {architecture}.{name} is {value!r}; it must be an integer from 1")
    d_head = header.get("attention.key_length", _default_d_head(header))
    for name in ("attention.value_length", "rope.dimension_count"):
        if header.get(name, d_head) != d_head:
            raise InputError(
                f"{path}: {architecture}.{name} is {header.get(name)}, but heads have {d_head} dimensions, and no "
                "other length comes through; give the model's safetensors checkpoint"
            )


def _default_d_head(header: GgufHeader) -> int:
    return int(header.get("embedding_length") // header.get("attention.head_count"))


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
        config.head_dim = header.get("attention.key_length", _default_d_head(header))
    check_config(config, path)
    return config  # type: ignore[no-any-return]  # transformers does not say


def _check_tensors(header: GgufHeader, config: Any, path: Path) -> None:
    """Raise InputError unless the file's tensors have together just the numbers that the model has."""
    from transformers import AutoModelForCausalLM

    if "rope_freqs.weight" in header.shapes:
        raise InputError(
            f"{path} scales its rotary frequencies (rope_freqs.weight), which does not come through when a GGUF file "
            "is loaded; give the model's safetensors checkpoint"
        )
    if config.num_hidden_layers > len(header.shapes):  # else the line below may build layers for hours
        raise InputError(f"{path} names {config.num_hidden_layers} layers, but has {len(header.shapes)} tensors")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers and torch raise what they like on absurd sizes
        raise InputError(f"{path} describes no possible model: {one_line(error)}") from error
    wanted = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    has, needs = sum(map(math.prod, header.shapes.values())), sum(wanted.values())
    if len(header.shapes) != len(wanted) or has != needs:
        raise InputError(
            f"{path} has {len(header.shapes)} tensors of {has} numbers, but its settings make a model of {len(wanted)} "
            f"tensors of {needs}; get the file again, or give the model's safetensors checkpoint"
        )


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
