"""Stored tensors against the parameters of the model that a configuration makes: each fills one, none is left over.

transformers drops what it has no place for, and fills what is missing with random numbers; both give another
model than the one that was saved. Names differ without harm: wrappers of a training run put a prefix before
them, base models are saved without theirs. What else is left over is refused, but for what computes nothing.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.files import open_regular, require_regular
from exporter.loading.families import FAMILIES
from exporter.loading.sources.configuration import one_line

_LFS_POINTER = b"version https://git-lfs"
FLOATS = {"F64", "F32", "F16", "BF16"}
_HEADS = ("lm_head.weight", "embed_out.weight")  # GPT-NeoX saves the latter, and transformers 5 says the former
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")  # at any depth
_PREFIXES = ("module.", "base_model.model.", "pretrained_model.", "model.")  # where all names have them
_VALUE_HEAD = re.compile(r"(v_head|value_head)(\.summary)?\.(weight|bias)")
_FREQUENCIES = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_PACKED = re.compile(r".*\.(qweight|qzeros|g_idx|scales|weight_scale\w*|weight_packed|absmax|quant_map|SCB)")
_LAYER = re.compile(r"\.(\d+)\.")
_MASKED = -1e3  # what stands where attention must not look; GPT-2 has -1e4
_ROWS = 4096  # of an embedding that are compared at a time
_SWITCHES = ("attention_bias", "mlp_bias", "use_bias")  # fields that give a model more tensors


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Fit:
    """Which stored tensor fills which parameter of the model, by the parameter's name, and those that compute nothing.

    `untied`: there is another unembedding than the embedding, whatever the configuration says. `plain`: the names are
    such as transformers finds by itself.
    """

    places: dict[str, Stored]
    extras: dict[str, Stored]
    untied: bool
    plain: bool

    def read_tensors(self) -> dict[str, Tensor]:
        """The tensors by their places; they stay in the files' pages."""
        return read_stored(self.places)


def read_headers(paths: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor of some safetensors files by its name. Raises InputError, also for one that is in two files."""
    tensors: dict[str, Stored] = {}
    for path in paths:
        for stored in _read_header(path):
            if stored.name in tensors:
                raise InputError(
                    f"{path}: tensor {stored.name} is in {tensors[stored.name].path.name}, too; save it again"
                )
            tensors[stored.name] = stored
    return tensors


def read_stored(wanted: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors' numbers, under the keys of `wanted`."""
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for path in sorted({stored.path for stored in wanted.values()}):
        with safe_open(require_regular(path), framework="pt") as file:
            tensors |= {key: file.get_tensor(stored.name) for key, stored in wanted.items() if stored.path == path}
    return tensors


def fit_weights(stored: Mapping[str, Stored], config: Any, folder: Path) -> Fit:
    """Which tensor goes where. Raises InputError unless all places are filled, in their shapes, and nothing is left."""
    if config.num_hidden_layers > len(stored):  # else build_empty may build layers for hours
        raise InputError(
            f"{folder}: config.json names {config.num_hidden_layers} layers, but the weights are {len(stored)} tensors"
        )
    _refuse_packed(stored, folder)
    model = build_empty(config, folder / "config.json")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    named, places = _match(_strip_wrappers(stored, folder), shapes, model.base_model_prefix + ".")
    extras = {name: tensor for name, tensor in named.items() if name not in places.values()}
    untied = not config.tie_word_embeddings
    embedding, head = (_find_name(model, m) for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    if not untied and shapes[embedding] == shapes[head]:
        untied = _settle_head(places, named, embedding, head)
    for name, shape in shapes.items():
        if name in places:
            _check_tensor(named[places[name]], name, shape, folder)
        elif untied or name != head:
            raise InputError(f"{folder} lacks the tensor {name}{_find_wrapped(named, name)}; get the whole checkpoint")
    for name in sorted(extras):
        if not _computes_nothing(name, extras[name].shape, config):
            raise InputError(f"{folder}: {_explain_extra(name, named, config, folder)}")
    plain = places[embedding] not in _HEADS and all(tensor.name == name for name, tensor in named.items())
    return Fit({name: named[key] for name, key in places.items()}, extras, untied, plain)


def build_empty(config: Any, source: Path) -> Any:
    """The model that a configuration describes, without memory for its weights. Raises InputError."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except Exception as error:  # transformers and torch raise what they like on absurd sizes
        raise InputError(f"{source} describes no possible model: {one_line(error)}") from error


def check_extras(fit: Fit, hf: Any, folder: Path) -> None:
    """Raise InputError for a stored mask or frequency that says otherwise than the model computes."""
    family = FAMILIES[hf.config.model_type]
    for name, value in read_stored(fit.extras).items():
        if name.endswith(".masked_bias"):
            right = bool(value.float() <= _MASKED)
        elif _FREQUENCIES.fullmatch(name):
            assert family.rotary is not None  # else fit_weights had refused it
            right = any(_is_close(value, own) for own in _frequencies(family.rotary(hf), hf.config))
        elif name.endswith(".bias") and not _VALUE_HEAD.fullmatch(name):
            seen = value[0, 0] != 0  # (pos, pos)
            right = torch.equal(seen, torch.ones_like(seen).tril())
        else:
            continue
        if not right:
            raise InputError(
                f"{folder}: tensor {fit.extras[name].name} holds other values than the model computes with, which "
                f"{'rope_theta and rope_scaling' if 'inv_freq' in name else 'causal attention'} gives; "
                "the checkpoint is of another kind of model"
            )


def _refuse_packed(stored: Mapping[str, Stored], folder: Path) -> None:
    for name in stored:
        if "lora_" in name or ".base_layer." in name:
            raise InputError(
                f"{folder}: tensor {name} is an adapter's, not merged; save what PEFT's merge_and_unload() gives"
            )
        if _PACKED.fullmatch(name):
            raise InputError(f"{folder}: the weights are quantized ({name}); give a checkpoint in fp32, fp16 or bf16")


def _strip_wrappers(stored: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """Tensors by their names without what torch.compile, FSDP and others put between the parts."""
    named: dict[str, Stored] = {}
    for name, tensor in stored.items():
        clean = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if clean in named:
            raise InputError(f"{folder}: tensors {named[clean].name} and {name} are the same one; save the plain model")
        named[clean] = tensor
    return named


def _match(
    named: dict[str, Stored], shapes: Mapping[str, object], base: str
) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors under the names that fill most parameters, and for each of these its tensor's name.

    Prefixes that all names have are taken off one after the other.
    """
    best: tuple[dict[str, Stored], dict[str, str]] = (named, {})
    while True:
        places = {}
        for name in shapes:
            aliases = _HEADS if name in _HEADS else (name.removeprefix(base),)  # base models lack the prefix
            if key := next((alias for alias in (name, *aliases) if alias in named), None):
                places[name] = key
        if len(places) > len(best[1]):
            best = named, places
        own = [name for name in named if not _VALUE_HEAD.fullmatch(name)]
        prefix = next((p for p in _PREFIXES if own and all(name.startswith(p) for name in own)), None)
        if prefix is None or len(places) == len(shapes):
            return best
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def _find_name(model: Any, module: Any) -> str:
    """The name of a module's weight."""
    return next(f"{name}.weight" for name, other in model.named_modules() if other is module)


def _settle_head(places: dict[str, str], named: Mapping[str, Stored], embedding: str, head: str) -> bool:
    """Whether a model that calls itself tied has an unembedding of its own; a copy of the embedding is taken out."""
    if head not in places:
        return False
    if embedding not in places:  # one of two tied tensors is saved, and that was this one
        places[embedding] = places.pop(head)
        return False
    tensors = read_stored({name: named[places[name]] for name in (embedding, head)})
    one, other = tensors[embedding], tensors[head]
    if one.shape != other.shape:
        return True
    same = all(torch.equal(a.float(), b.float()) for a, b in zip(one.split(_ROWS), other.split(_ROWS), strict=True))
    if same:
        del places[head]
    return not same


def _check_tensor(tensor: Stored, name: str, shape: tuple[int, ...], folder: Path) -> None:
    if tensor.kind not in FLOATS:
        raise InputError(f"{tensor.path}: tensor {tensor.name} is {tensor.kind}; known: fp32, fp16, bf16, fp64")
    if tensor.shape != shape:
        raise InputError(f"{folder}: tensor {name} is {tensor.shape}, but config.json makes it {shape}")


def _find_wrapped(named: Mapping[str, Stored], name: str) -> str:
    """Where a missing tensor is there under a longer name, that name."""
    wrapped = next((other for other in named if other.endswith(f".{name}")), None)
    return f" (it has {wrapped}; save the model without what wraps it)" if wrapped else ""


def _computes_nothing(name: str, shape: tuple[int, ...], config: Any) -> bool:
    """Whether a tensor without a parameter is of a kind that adds nothing to the logits: a value head, a mask."""
    if match := _VALUE_HEAD.fullmatch(name):
        return shape == ((1, config.hidden_size) if match[3] == "weight" else (1,))
    family = FAMILIES[config.model_type]
    layer = _LAYER.search(f".{name}")
    if layer and int(layer[1]) >= config.num_hidden_layers:
        return False
    if _FREQUENCIES.fullmatch(name):
        return family.rotary is not None
    for mask in family.masks:
        if re.fullmatch(rf"(\w+\.)?(h|layers)\.\d+\.{re.escape(mask)}", name):
            length = config.max_position_embeddings
            return math.prod(shape) == 1 if mask.endswith("masked_bias") else shape == (1, 1, length, length)
    return False


def _explain_extra(name: str, named: Mapping[str, Stored], config: Any, folder: Path) -> str:
    """What a tensor without a place means, and what config.json would have to say to make one of it and the others."""
    what = f"the model that config.json describes has no place for the tensor {named[name].name}"
    changes: dict[str, Any] = {field: True for field in _SWITCHES if getattr(config, field, None) is False}
    layer = _LAYER.search(f".{name}")
    if layer and config.num_hidden_layers <= int(layer[1]) < len(named):
        layers = [int(match[1]) for key in named if (match := _LAYER.search(f".{key}"))]
        changes = {"num_hidden_layers": 1 + max(layers)}
    for field, value in changes.items():
        other = copy.deepcopy(config)
        setattr(other, field, min(value, len(named)) if value is not True else value)
        if hasattr(other, "layer_types"):
            other.layer_types = ["full_attention"] * other.num_hidden_layers
        with suppress(InputError):
            model = build_empty(other, folder)
            base = f"{model.base_model_prefix}."
            places = {key for key in model.state_dict() if key not in _HEADS}
            if {name, base + name} & places and all({key, key.removeprefix(base)} & named.keys() for key in places):
                return f"{what}; if it is meant, set {field} to {json.dumps(value)}"
    return f"{what} (type {config.model_type}); it is of another type of model, or of another checkpoint"


def _frequencies(module: Any, config: Any) -> list[Tensor]:
    """What older versions stored: frequencies as they are used, or before they are scaled."""
    scaled: Tensor = module.inv_freq
    base = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", getattr(config, "rope_theta", None))
    exponents = torch.arange(len(scaled), dtype=torch.float64, device=scaled.device) / len(scaled)
    return [scaled] if base is None else [scaled, float(base) ** -exponents]


def _is_close(value: Tensor, own: Tensor) -> bool:
    """As close as bfloat16 and float16 keep them."""
    return value.shape == own.shape and torch.allclose(value.double(), own.double().cpu(), rtol=1e-2, atol=1e-7)


def _read_header(path: Path) -> Iterator[Stored]:
    """Each tensor, from the head of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    with open_regular(path) as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' there")
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it has no iterator
                tensor = tensors.get_slice(name)
                yield Stored(path, name, tuple(tensor.get_shape()), tensor.get_dtype())
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file ({one_line(error)}); get it again") from error
