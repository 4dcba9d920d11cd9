"""The language model to work on: from a folder, from the hub, or the one that comes along.

`auto` asks for GPT-2 Small and settles for the bundled checkpoint when it cannot be had soon; it says
so in `notes`. A model that was named never falls back to another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint import hash_files, load_tokenizer, load_weights, read_config, weight_files
from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.families import FAMILIES
from exporter.hub import GPT2_SMALL, HubError, fetch_snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AUTO_SECONDS = 4.0
_NAMED_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Hugging Face model, ready to be read: float32, eval mode, no gradients.

    `name` is what was asked for (for `auto`: what was chosen), `revision` the commit hash of a hub
    model. `sha256` is over the weight files' bytes in the order of their names. `tokenizer` is None
    where the checkpoint has none. `notes` are lines that a user should see.
    """

    name: str
    revision: str | None
    sha256: str
    family: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()

    @cached_property
    def dense(self) -> CircuitModel:
        """The same model as a CircuitModel with every component; it shares the weights' storage."""
        return FAMILIES[self.family].build_dense(self.hf)


def load_model(source: str | Path = "auto", *, revision: str | None = None) -> LanguageModel:
    """Load a model from a checkpoint folder, a hub name (`org/name`), `bundled` or `auto`.

    `revision` is a branch, tag or commit hash of a hub model. A complete copy in the local hub cache is
    used without asking the hub. Raises InputError for a model that cannot be had, is damaged, or is of
    no known family. A folder that is called like a keyword is written `./auto`.
    """
    if source == "auto":
        _refuse_revision(revision, "auto")
        return _load_auto()
    if source == "bundled":
        _refuse_revision(revision, "bundled")
        return _load_folder(bundled_path(), name="bundled")
    folder = Path(source).expanduser()
    if folder.is_dir():
        _refuse_revision(revision, "a folder")
        return _load_folder(folder, name=str(source))
    if folder.exists():
        raise InputError(f"{source} is a file; give the checkpoint folder that holds config.json")
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise InputError(
            f"no folder {str(source)!r}; give a checkpoint folder, a hub name (such as {GPT2_SMALL}), "
            "'bundled' or 'auto'"
        )
    snapshot = fetch_snapshot(source, revision=revision, seconds=_NAMED_SECONDS)
    return _load_folder(snapshot, name=source, revision=snapshot.name)


def bundled_path() -> Path:
    """The folder of the checkpoint that comes with the package: in the wheel, or in the source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "bundled", package.parent / "models" / "bundled"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError("the bundled checkpoint is missing from this installation; install export-circuit again")


def _load_auto() -> LanguageModel:
    try:
        snapshot = fetch_snapshot(GPT2_SMALL, seconds=_AUTO_SECONDS)
    except HubError as error:
        note = f"using the bundled model instead of {GPT2_SMALL}: {error.reason}"
        return _load_folder(bundled_path(), name="bundled", notes=(note,))
    return _load_folder(snapshot, name=GPT2_SMALL, revision=snapshot.name)


def _load_folder(folder: Path, *, name: str, revision: str | None = None, notes: tuple[str, ...] = ()) -> LanguageModel:
    config = read_config(folder)
    return LanguageModel(
        name=name,
        revision=revision,
        sha256=hash_files(weight_files(folder)),
        family=config.model_type,
        hf=load_weights(folder, config),
        tokenizer=load_tokenizer(folder, config),
        notes=notes,
    )


def _refuse_revision(revision: str | None, source: str) -> None:
    if revision is not None:
        raise InputError(f"revision {revision!r} is for a hub name; {source} has none, leave it out")
