"""A checkpoint's weights and tokenizer, checked before they are trusted.

transformers fills what it misses with random numbers and warns; we refuse. Names and shapes are
compared with the configuration's on the meta device, so that a wrong or hostile configuration costs no
memory. No pickle is read and no code of the checkpoint runs. Weights that are stored as they are wanted
stay in the file's pages; others are converted one tensor at a time, so that no model is held twice.
"""

from __future__ import annotations

import hashlib
import logging as stdlib_logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from exporter.errors import InputError
from exporter.offload import DeviceMap, OffloadFolder, iterate_parameters
from exporter.sources.configuration import one_line, read_json, refuse_code
from exporter.sources.hub import TOKENIZERS, WEIGHTS, WEIGHTS_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LFS_POINTER = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_MASKS = tuple(f".{name}.{kind}" for name in ("attn", "attention") for kind in ("bias", "masked_bias"))  # not weights
_HEADS = ("lm_head.weight", "embed_out.weight")  # GPT-NeoX saves the latter, and transformers 5 says the former
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16}

Precision = Literal["float32", "bfloat16", "float16", "auto"]
"""What the weights are held in; `auto` is what they are stored in."""
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, sorted by name. Raises InputError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        weight_map = read_json(folder / WEIGHTS_INDEX).get("weight_map")
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


def stored_dtype(folder: Path) -> torch.dtype:
    """The narrowest of float32, float16 and bfloat16 that holds every tensor of a checkpoint as it is stored."""
    kinds = {kind for path in weight_files(folder) for _, kind in _read_header(path).values()} & _FLOATS
    return _STORED.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


def load_weights(
    folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32, device_map: DeviceMap | None = None
) -> PreTrainedModel:
    """The model in eval mode, without gradients; with a device map, spread as it says. Raises InputError."""
    from transformers import AutoModelForCausalLM

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes |= {name: shape for name, (shape, _) in _read_header(path).items()}
    with quiet_transformers(), ExitStack() as stack:
        _check_shapes(shapes, config, folder)
        placement: dict[str, Any] = {}
        if device_map is not None:
            offloaded = stack.enter_context(OffloadFolder())
            placement = {"device_map": device_map, "offload_folder": offloaded.path}
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="eager",  # the plain formula: this model is the oracle
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **placement,
            )
        except Exception as error:  # transformers raises its own and plain errors alike
            raise InputError(f"{folder} cannot be loaded: {one_line(error)}") from error
        if device_map is not None:
            offloaded.belongs_to(model)
    return finish_model(model, folder, dtype)


def finish_model(model: PreTrainedModel, source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model without gradients, in eval mode. Raises InputError where a weight is NaN or Inf."""
    model.eval().requires_grad_(False)
    for name, tensor in iterate_parameters(model):
        low, high = tensor.aminmax()  # NaN comes through; isfinite would hold the tensor once more
        if not math.isfinite(low) or not math.isfinite(high):
            if dtype == torch.float16:
                raise InputError(
                    f"{source}: tensor {name} holds NaN or Inf, or what float16 cannot hold; choose float32 or bfloat16"
                )
            raise InputError(f"{source}: tensor {name} holds NaN or Inf; the checkpoint is damaged, use another one")
    return model


def load_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights, or None where there is none. Raises InputError."""
    import transformers

    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    refuse_code(settings, path)
    kind: Any = transformers.AutoTokenizer
    if settings.get("tokenizer_class") == "TokenizersBackend":  # what transformers 5 writes, and 4 does not know
        kind = transformers.PreTrainedTokenizerFast
    try:
        with quiet_transformers():
            tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}") from error
    return check_tokenizer(tokenizer, config, folder)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer; raises InputError when it has tokens that the model does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer in {source} has {tokenizer.vocab_size} tokens, but the model knows {config.vocab_size}; "
            "it belongs to another model"
        )
    return tokenizer


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of each tensor by its name, from the head of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' there")
    found = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it has no iterator
                tensor = tensors.get_slice(name)
                if tensor.get_dtype() not in _FLOATS and not name.endswith(_MASKS):
                    raise InputError(f"{path}: tensor {name} is {tensor.get_dtype()}; known: fp32, fp16, bf16, fp64")
                found[name] = tuple(tensor.get_shape()), tensor.get_dtype()
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file ({one_line(error)}); get it again") from error
    return found


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
        raise InputError(f"{folder / 'config.json'} describes no possible model: {one_line(error)}") from error
    prefix = model.base_model_prefix + "."
    embedding = model.get_input_embeddings().weight.shape
    for name, tensor in model.state_dict().items():
        aliases = _HEADS if name.endswith(_HEADS) else (name.removeprefix(prefix),)  # GPT-2's files lack the prefix
        shape = next((found[known] for known in (name, *aliases) if known in found), None)
        if shape is None:
            if config.tie_word_embeddings and name.endswith(_HEADS) and tensor.shape == embedding:
                continue
            raise InputError(f"{folder} lacks the tensor {name}; get the whole checkpoint")
        if shape != tuple(tensor.shape):
            raise InputError(f"{folder}: tensor {name} is {shape}, but config.json makes it {tuple(tensor.shape)}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
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
