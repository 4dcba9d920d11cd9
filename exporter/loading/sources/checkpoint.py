"""A checkpoint's weights and tokenizer, checked before they are trusted.

transformers fills what it misses with random numbers and warns; we refuse. Names and shapes are
compared with the configuration's on the meta device, so that a wrong or hostile configuration costs no
memory. No pickle is read and no code of the checkpoint runs. Weights that are stored as they are wanted
stay in the file's pages; others are converted one tensor at a time, so that no model is held twice.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from exporter.errors import InputError
from exporter.files import open_regular
from exporter.loading.families import FAMILIES
from exporter.loading.offload import DeviceMap, OffloadFolder, iterate_parameters
from exporter.loading.sources.configuration import one_line, read_json
from exporter.loading.sources.fields import drop_strange_tokens
from exporter.loading.sources.folders import explain_no_weights
from exporter.loading.sources.hub import WEIGHTS, WEIGHTS_INDEX
from exporter.loading.sources.quiet import quiet_transformers
from exporter.loading.sources.weights import FLOATS, check_extras, fit_weights, read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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
    raise InputError(explain_no_weights(folder))


def hash_files(paths: Sequence[Path]) -> str:
    """sha256 of the files' bytes, one after the other; for one file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def stored_dtype(folder: Path) -> torch.dtype:
    """The narrowest of float32, float16 and bfloat16 that holds every tensor of a checkpoint as it is stored."""
    kinds = {tensor.kind for tensor in read_headers(weight_files(folder)).values()} & FLOATS
    return _STORED.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


def load_weights(
    folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32, device_map: DeviceMap | None = None
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model in eval mode, without gradients, and what a user should know of its weights. Raises InputError.

    With a device map it is spread as that says. The tensors are those that were checked: transformers is given them
    by the parameters' names, and opens no file but for a device map.
    """
    with quiet_transformers(), ExitStack() as stack:
        fit = fit_weights(read_headers(weight_files(folder)), config, folder)
        notes: tuple[str, ...] = ()
        if fit.untied and config.tie_word_embeddings:
            config = copy.deepcopy(config)
            config.tie_word_embeddings = False
            notes = (f"{folder} calls itself tied, but stores another unembedding; that one is used",)
        source: dict[str, Any] = {"pretrained_model_name_or_path": None, "state_dict": fit.read_tensors()}
        if device_map is not None:
            offloaded = stack.enter_context(OffloadFolder())
            if not fit.plain:
                raise InputError(
                    f"{folder}: its tensors have other names than the model's, as of a wrapped one, and so a device "
                    "map cannot spread it; load it without, or save the plain model"
                )
            source = {"pretrained_model_name_or_path": folder, "device_map": device_map}
            source["offload_folder"] = offloaded.path
        model = _build(source, config, dtype, folder)
        model.generation_config = _read_generation(folder, model)
        check_extras(fit, model, folder)
        if device_map is not None:
            offloaded.belongs_to(model)
    return finish_model(model, folder, dtype), notes


def _build(source: dict[str, Any], config: PreTrainedConfig, dtype: torch.dtype, folder: Path) -> PreTrainedModel:
    import transformers

    architecture = getattr(transformers, FAMILIES[config.model_type].architecture)
    try:
        loaded: Any = architecture.from_pretrained(
            **source,
            config=config,
            dtype=dtype,
            attn_implementation="eager",  # the plain formula: this model is the oracle
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises its own and plain errors alike
        raise InputError(f"{folder} cannot be loaded: {one_line(error)}") from error
    model, info = loaded
    if wrong := [*info["missing_keys"], *info["mismatched_keys"], *info["error_msgs"]]:
        raise InputError(f"{folder}: {wrong[0]} does not come through; get the checkpoint again")
    return model  # type: ignore[no-any-return]  # transformers does not say


def _read_generation(folder: Path, model: PreTrainedModel) -> Any:
    """generation_config.json, of which the tokens that end a text are read; the model's own where there is none."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.is_file():
        return model.generation_config
    # transformers 4 generates with what the model's own configuration made, and breaks on what says so in a file
    data = {name: value for name, value in read_json(path).items() if name != "_from_model_config"}
    try:
        generation: Any = GenerationConfig.from_dict(data)
    except Exception:  # transformers raises what it likes at settings of sampling, which we do not do
        tokens = {name: data.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation = GenerationConfig(**tokens)
    drop_strange_tokens(generation, model.config.vocab_size, path)
    return generation


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
