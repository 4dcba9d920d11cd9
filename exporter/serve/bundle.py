"""A bundle as it is served: checked against its own manifest, its session open, its answers in words.

Neither torch nor transformers is imported: a server starts in a second and takes some 100 MB beside the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.files import open_regular
from exporter.files.names import MANIFEST, MODEL, TOKENIZER
from exporter.files.onnx_file import read_onnx
from exporter.files.reading import read_json, read_steadily
from exporter.graph.metadata import Origin
from exporter.loading.sources.reading import read_prompt, read_tokenizer
from exporter.runtime.session import open_session
from exporter.serve.engine import Engine
from exporter.serve.refusals import RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class ServedBundle:
    """An open bundle. `manifest` is its model.json as data, `sha256` of its graph."""

    folder: Path
    engine: Engine
    tokenizer: Tokenizer
    origin: Origin
    manifest: Mapping[str, Any]
    sha256: str
    _words: dict[int, str] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """The task and the start of the graph's hash: what an answer came from."""
        return f"{self.origin.task.name}-{self.sha256[:12]}"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty where the answers are tokens."""
        return tuple(map(str, _get(self.manifest, "export", "labels") or ()))

    @cached_property
    def template(self) -> tuple[str, str] | None:
        """What stands before and behind a user's text in a prompt of the task, where that is known."""
        found = _get(self.manifest, "export", "template")
        return (str(found.get("prefix", "")), str(found.get("suffix", ""))) if isinstance(found, Mapping) else None

    def read(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt. Raises RequestError."""
        try:
            return tuple(read_prompt(self.tokenizer, text)[0])
        except InputError as error:
            raise RequestError("unreadable_prompt", str(error)) from error

    def name_token(self, token: int) -> str:
        """A token's text, with the space that it may begin with."""
        if token not in self._words:
            self._words[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return self._words[token]

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON-able data: of the manifest what callers need."""
        circuit, engine, get = Circuit.from_json(dict(self.manifest["circuit"])), self.engine, self.manifest.get
        ids = [] if engine.answer_ids is None else engine.answer_ids.tolist()
        return {
            "id": self.id,
            "sha256": self.sha256,
            "task": self.origin.task.name,
            "dense_model": self.origin.model.name,
            "circuit": {"heads": len(circuit.heads), "mlps": len(circuit.mlps)},
            "size": get("size"),
            "test": _get(self.manifest, "test", "circuit"),
            "precision": self.origin.options.precision,
            "form": engine.form,
            "tokens": {"least": engine.pinned or 1, "most": engine.longest},
            "answers": [self.name_token(token) for token in ids],
            "labels": list(self.labels),
            "template": None if self.template is None else dict(zip(("prefix", "suffix"), self.template, strict=True)),
            "guards": engine.guards,
            "batched": not engine.batch_dependent,
            "versions": get("versions"),
        }


def open_bundle(folder: str | Path, *, threads: int | None = None) -> ServedBundle:
    """Open a bundle folder. Raises InputError: it is none, is incomplete, or a file is not the one in its manifest."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"no folder {str(path)!r}; give a bundle, which export-circuit --bundle writes")
    return read_steadily(path / MANIFEST, lambda: _open(path, threads))


def _open(folder: Path, threads: int | None) -> ServedBundle:
    manifest = _read_manifest(folder / MANIFEST)
    file = read_onnx(folder / MODEL)
    for name in (MODEL, TOKENIZER, *(path.name for path in file.weights)):
        _check_hash(folder / name, manifest)
    options = (origin := Origin.of(file)).options
    together = options.precision == "int8" and options.scales == "tensor"
    engine = Engine(open_session(folder / MODEL, threads=threads, spin=False), batch_dependent=together)
    return ServedBundle(folder, engine, read_tokenizer(folder / TOKENIZER), origin, manifest, file.sha256)


def _read_manifest(path: Path) -> Mapping[str, Any]:
    """model.json as data, of which no more is checked than the server needs; `Manifest` would import torch."""
    try:
        found = read_json(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a bundle folder") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON; export the bundle again") from error
    if not isinstance(found, Mapping) or not all(isinstance(found.get(key), Mapping) for key in ("circuit", "files")):
        raise InputError(f"{path} is not a manifest: it has no circuit or no files; export the bundle again")
    Circuit.from_json(dict(found["circuit"]))
    return found


def _check_hash(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise InputError unless the file is the one that the manifest is about."""
    wanted = _get(manifest, "files", path.name, "sha256")
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; copy the whole bundle") from error
    if found != wanted:
        raise InputError(f"{path} is not the file that {MANIFEST} beside it is about; copy the whole bundle again")


def _get(data: Any, *keys: str) -> Any:
    """What stands at a path of keys, None where there is nothing."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data
