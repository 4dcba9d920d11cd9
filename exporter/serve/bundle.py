"""A bundle as it is served: checked against its own manifest, its session open, its answers in words.

Neither torch nor transformers is imported: a server starts in a second and takes some 100 MB beside the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from exporter.errors import InputError
from exporter.files.names import MANIFEST, MODEL, TOKENIZER
from exporter.files.onnx_file import read_onnx
from exporter.files.reading import read_steadily
from exporter.graph.metadata import Origin
from exporter.outputs.manifest import FileInfo, Manifest, hash_file
from exporter.runtime.reader import PromptReader, open_reader
from exporter.runtime.session import open_session
from exporter.runtime.words import read_labels, read_template
from exporter.serve.engine import Engine
from exporter.serve.refusals import RequestError


@dataclass(frozen=True, eq=False)
class ServedBundle:
    """An open bundle: its session, what reads its prompts, its manifest.

    labels: names of the classes in the order of the logits; empty where the answers are tokens. sha256: of its graph.
    """

    folder: Path
    engine: Engine
    reader: PromptReader
    labels: tuple[str, ...]
    origin: Origin
    manifest: Manifest
    sha256: str
    _words: dict[int, str] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """The task and the start of the graph's hash: what an answer came from."""
        return f"{self.origin.task.name}-{self.sha256[:12]}"

    def read(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt. Raises RequestError."""
        try:
            return tuple(self.reader.read(prompt)[0])
        except InputError as error:
            raise RequestError("unreadable_prompt", str(error)) from error

    def name_token(self, token: int) -> str:
        """A token's text, with the space that it may begin with."""
        if token not in self._words:
            self._words[token] = self.reader.tokenizer.decode([token], skip_special_tokens=False)
        return self._words[token]

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON-able data: of the manifest what callers need."""
        circuit, engine, manifest = self.manifest.get_circuit(), self.engine, self.manifest.to_dict()
        ids = [] if engine.answer_ids is None else engine.answer_ids.tolist()
        template = self.reader.template
        return {
            "id": self.id,
            "sha256": self.sha256,
            "task": self.origin.task.name,
            "dense_model": self.origin.model.name,
            "circuit": {"heads": len(circuit.heads), "mlps": len(circuit.mlps)},
            "size": manifest["size"],
            "test": manifest["test"]["circuit"],
            "precision": self.origin.options.precision,
            "form": engine.form,
            "tokens": {"least": engine.pinned or 1, "most": engine.longest},
            "answers": [self.name_token(token) for token in ids],
            "labels": list(self.labels),
            "template": None if template is None else asdict(template),
            "guards": engine.guards,
            "batched": not engine.batch_dependent,
            "versions": manifest["versions"],
        }


def open_bundle(folder: str | Path, *, threads: int | None = None) -> ServedBundle:
    """Open a bundle folder. Raises InputError: it is none, is incomplete, or a file is not the one in its manifest."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"no folder {str(path)!r}; give a bundle, which export-circuit --bundle writes")
    return read_steadily(path / MANIFEST, lambda: _open(path, threads))


def _open(folder: Path, threads: int | None) -> ServedBundle:
    manifest = Manifest.load(folder / MANIFEST)
    file = read_onnx(folder / MODEL)
    for name in (MODEL, TOKENIZER, *(path.name for path in file.weights)):
        _check_hash(folder / name, manifest.files)
    options = (origin := Origin.of(file)).options
    together = options.precision == "int8" and options.scales == "tensor"
    session = open_session(folder / MODEL, threads=threads, spin=False)
    engine, labels = Engine(session, batch_dependent=together), read_labels(session) or ()
    reader = open_reader(folder / TOKENIZER, read_template(session))
    return ServedBundle(folder, engine, reader, labels, origin, manifest, file.sha256)


def _check_hash(path: Path, files: dict[str, FileInfo]) -> None:
    """Raise InputError unless the file is the one that the manifest is about."""
    try:
        found = hash_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; copy the whole bundle") from error
    if path.name not in files or found.sha256 != files[path.name].sha256:
        raise InputError(f"{path} is not the file that {MANIFEST} beside it is about; copy the whole bundle again")
