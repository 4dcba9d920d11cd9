"""A folder that is all a user needs: the model, its tokenizer, its configuration, and what is known of it.

Beside model.onnx and its manifest stand config.json and generation_config.json for Optimum, tokenizer.json,
genai_config.json for onnxruntime-genai where the model keeps a past, a model card, and run.py, which decodes
with onnxruntime, numpy and tokenizers alone. Everything that depends on the circuit is read from the ONNX
file, so that the folder cannot say another thing than the file does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from exporter.bundle.card import render_card
from exporter.bundle.folders import OutputFolder
from exporter.bundle.runner import render_runner
from exporter.errors import InputError
from exporter.files import OutputSet
from exporter.graph_options import Form
from exporter.loading import LanguageModel
from exporter.manifest import Manifest, hash_file
from exporter.onnx_export import read_metadata
from exporter.prompting import CONFIG, GENERATION, MODEL, RUNNER, TOKENIZER
from exporter.runtime import IN_VOCABULARY, MAX_LENGTH_KEY, name_form

MANIFEST, CARD, GENAI = "model.json", "README.md", "genai_config.json"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "chat_template.jinja")


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle that we wrote, with nothing else in it."""
    try:
        files = Manifest.load(folder / MANIFEST).files
    except InputError:
        return False
    return {MODEL, RUNNER} <= set(files) and {path.name for path in folder.iterdir()} <= {*files, MANIFEST}


@dataclass(frozen=True)
class Outputs:
    """Where a job writes: a file with its manifest, a bundle, or both."""

    files: OutputSet | None
    folder: OutputFolder | None

    @property
    def model_path(self) -> Path:
        """Where the ONNX file is to be written."""
        if self.files is not None:
            return self.files.path(".onnx")
        assert self.folder is not None
        return self.folder.folder / MODEL

    def write(self, manifest: Manifest, model: LanguageModel, *, example: str) -> Manifest:
        """Everything beside the ONNX file; returns the manifest, the bundle's where that is all there is."""
        if self.files is not None:
            self.files.path(".json").write_text(manifest.to_json(), encoding="utf-8")
        if self.folder is None:
            return manifest
        if self.files is not None:
            shutil.copyfile(self.model_path, self.folder.folder / MODEL)
        complete = write_bundle(self.folder.folder, manifest, model, example=example)
        return complete if self.files is None else manifest

    def commit(self) -> None:
        """Put everything in place, and remove what of an older set has no place in this one."""
        stale = [] if self.files is None else self._find_stale(self.files)
        for written in (self.folder, self.files):
            if written is not None:
                written.commit()
        for path in stale:
            path.unlink(missing_ok=True)

    def _find_stale(self, files: OutputSet) -> list[Path]:
        """Weights beside the graph that the old manifest names, where the new graph holds its own."""
        target = files.target(".onnx.data")
        if ".onnx.data" in files.suffixes or not target.is_file():
            return []
        try:
            known = Manifest.load(files.target(".json")).files
        except InputError:
            return []
        return [target] if target.name in known else []


@contextmanager
def open_outputs(
    out: Path | None, bundle: Path | None, *, suffixes: Sequence[str] = (".onnx", ".json"), force: bool
) -> Iterator[Outputs]:
    """Reserve both; what was there before stays until `commit`. Raises InputError when one cannot be written."""
    with ExitStack() as stack:
        files = None if out is None else stack.enter_context(OutputSet(out, suffixes=suffixes, force=force))
        folder = None
        if bundle is not None:
            folder = stack.enter_context(OutputFolder(bundle, is_replaceable=is_bundle, force=force))
        yield Outputs(files, folder)


def write_bundle(folder: Path, manifest: Manifest, model: LanguageModel, *, example: str) -> Manifest:
    """Complete a folder that holds model.onnx already; returns its manifest, which names every other file.

    `example` is a prompt for the model card. Raises InputError for a tokenizer that cannot be written as one
    tokenizer.json.
    """
    shape = _Shape(folder / MODEL, manifest, model)
    write_tokenizer(model, folder)
    for name, data in ((CONFIG, shape.config()), (GENERATION, shape.generation_config())):
        _write_json(folder / name, data)
    if shape.form == "past" and manifest.export.logits != "answers":
        _write_json(folder / GENAI, shape.genai_config())
    runner = render_runner(
        shape.form,
        longest=shape.max_length,
        stop_ids=shape.stop_ids,
        pinned=shape.pinned,
        keeps_past=bool(shape.kv_heads),
        answers="answer_token_ids" in manifest.onnx.outputs,
        vocabulary=IN_VOCABULARY in manifest.onnx.outputs,
    )
    (folder / RUNNER).write_text(runner, encoding="utf-8")
    card = render_card(manifest, shape.form, kv_heads=shape.kv_heads, max_length=shape.max_length, example=example)
    (folder / CARD).write_text(card, encoding="utf-8")
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != MODEL, name))  # it comes first
    found = {name: hash_file(folder / name) for name in names}
    complete = manifest.model_copy(update={"files": found})
    (folder / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
    return complete


def write_tokenizer(model: LanguageModel, folder: Path) -> None:
    """tokenizer.json, which cuts and pads nothing, and what else says how to use it. Raises InputError."""
    from tokenizers import Tokenizer

    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if model.tokenizer is None or backend is None:
        raise InputError(f"the tokenizer of {model.name} has no tokenizer.json; put one beside config.json")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER))
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as scratch:
        model.tokenizer.save_pretrained(scratch)
        for name in _TOKENIZER_EXTRAS:
            if (Path(scratch) / name).is_file():
                shutil.copyfile(Path(scratch) / name, folder / name)


@dataclass(frozen=True)
class _Shape:
    """What the configurations say, from the ONNX file and the dense model's own configuration."""

    path: Path
    manifest: Manifest
    model: LanguageModel

    @property
    def inputs(self) -> dict[str, list[str | int]]:
        return self.manifest.onnx.inputs

    @property
    def form(self) -> Form:
        return name_form(self.inputs)

    @property
    def pinned(self) -> bool:
        """Whether prompts have one length."""
        return isinstance(self.inputs["input_ids"][1], int)

    @cached_property
    def max_length(self) -> int:
        return int(read_metadata(self.path)[MAX_LENGTH_KEY])

    @property
    def kv_heads(self) -> list[int]:
        """Key/value heads of each attention sublayer whose past is kept."""
        return [int(shape[1]) for name, shape in self.inputs.items() if name.endswith(".key")]

    @property
    def d_head(self) -> int | None:
        """Width of one head; None where no past is kept."""
        return next((int(shape[3]) for name, shape in self.inputs.items() if name.endswith(".key")), None)

    @property
    def stop_ids(self) -> list[int]:
        """The dense model's end-of-text tokens."""
        own, known = getattr(self.model.hf, "generation_config", None), self.model.hf.config.eos_token_id
        found = getattr(own, "eos_token_id", None)
        ids = known if found is None else found
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    def config(self) -> dict[str, Any]:
        """config.json: the dense model's, with what differs; `export_circuit` holds what it was."""
        with tempfile.TemporaryDirectory(prefix="export-circuit-") as scratch:
            self.model.hf.config.save_pretrained(scratch)  # as the installed transformers writes it
            data: dict[str, Any] = json.loads((Path(scratch) / "config.json").read_text(encoding="utf-8"))
        changes: dict[str, Any] = {
            "n_positions" if "n_positions" in data else "max_position_embeddings": self.max_length,
            "use_cache": bool(self.kv_heads),
            "architectures": [type(self.model.hf).__name__],
            "torch_dtype" if "torch_dtype" in data else "dtype": "float32",
            **self._cache_changes(data),
        }
        dense = {key: data.get(key) for key, value in changes.items() if data.get(key) != value}
        circuit = self.manifest.get_circuit()
        ours = {"form": self.form, "heads": [[h.layer, h.index] for h in circuit.heads], "mlps": list(circuit.mlps)}
        return {**data, **changes, "export_circuit": {**ours, "dense": dense}}

    def _cache_changes(self, data: dict[str, Any]) -> dict[str, Any]:
        """Optimum makes the empty past of every layer from these; they can be right only where layers are alike."""
        if len(set(self.kv_heads)) != 1 or self.d_head is None:
            return {}
        n_kv, d_head = self.kv_heads[0], self.d_head
        heads, width = ("n_head", "n_embd") if "n_head" in data else ("num_attention_heads", "hidden_size")
        grouped = {"num_key_value_heads": n_kv} if "num_key_value_heads" in data else {}
        return {heads: n_kv, width: n_kv * d_head, **grouped}  # which of the two it reads depends on the family

    def generation_config(self) -> dict[str, Any]:
        """Greedy, and no longer than the model knows."""
        config = self.model.hf.config
        stop = self.stop_ids
        return {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
            "pad_token_id": self._pad_id(),
            "do_sample": False,
            "max_length": self.max_length,
            "use_cache": bool(self.kv_heads),
        }

    def _pad_id(self) -> int:
        pad = getattr(self.model.hf.config, "pad_token_id", None)
        return pad if isinstance(pad, int) else next(iter(self.stop_ids), 0)

    def genai_config(self) -> dict[str, Any]:
        """What onnxruntime-genai reads; head counts by layer it takes from the ONNX file's own inputs."""
        config = self.model.hf.config
        names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
        presents = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
        decoder = {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": MODEL,
            "head_size": self.d_head or 1,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": len(self.kv_heads),
            "num_key_value_heads": max(self.kv_heads, default=1),
            "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
            "outputs": {"logits": "logits", **presents},
        }
        pad = self._pad_id()
        model = {
            "type": "decoder",  # for any decoder with these inputs; "gpt2" would be an older layout
            "bos_token_id": pad if config.bos_token_id is None else config.bos_token_id,
            "eos_token_id": self.stop_ids,
            "pad_token_id": pad,
            "context_length": self.max_length,
            "vocab_size": config.vocab_size,
            "decoder": decoder,
        }
        search = {"do_sample": False, "max_length": self.max_length, "num_beams": 1, "past_present_share_buffer": False}
        return {"model": model, "search": search}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
