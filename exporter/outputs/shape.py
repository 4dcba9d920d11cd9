"""What the files of a bundle say of its model: read from the ONNX file, so that they cannot say another thing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from exporter.graph.export import read_metadata
from exporter.graph.metadata import EXAMPLES_KEY, MAX_LENGTH_KEY
from exporter.graph.options import Form
from exporter.loading.load import LanguageModel
from exporter.outputs.manifest import Manifest
from exporter.runtime.session import name_form


@dataclass(frozen=True)
class BundleShape:
    """What the configurations say, from the ONNX file and the dense model's own configuration.

    example: a prompt of the task. framed: whether the bundle's tokenizer puts the task's template around a text itself.
    """

    path: Path
    manifest: Manifest
    model: LanguageModel
    example: str = ""
    framed: bool = False

    @property
    def name(self) -> str:
        """What servers call the model: the task's name, of letters, digits, `-`, `_` and `.`."""
        return name_model(self.manifest.task.name)

    @property
    def inputs(self) -> dict[str, list[str | int]]:
        """Shapes of the graph's inputs, by name."""
        return self.manifest.onnx.inputs

    @property
    def form(self) -> Form:
        """What the graph takes."""
        return name_form(self.inputs)

    @property
    def pinned(self) -> bool:
        """Whether prompts have one length."""
        return isinstance(self.inputs["input_ids"][1], int)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the ONNX file says of itself."""
        return read_metadata(self.path)

    @property
    def max_length(self) -> int:
        """The longest sequence that the model computes."""
        return int(self.metadata[MAX_LENGTH_KEY])

    @property
    def examples(self) -> list[list[int]]:
        """The prompts that the ONNX file holds, without padding."""
        stored = json.loads(self.metadata.get(EXAMPLES_KEY, '{"input_ids": []}'))
        rows, masks = stored["input_ids"], stored.get("attention_mask") or stored["input_ids"]
        padded = stored.get("attention_mask") is not None
        return [
            [token for token, is_text in zip(row, mask, strict=True) if is_text or not padded]
            for row, mask in zip(rows, masks, strict=True)
        ]

    def keep_id(self, token: object) -> int | None:
        """A token id, or None for one that is not in the vocabulary, such as -1, which some write for none."""
        size = self.model.hf.config.vocab_size
        return token if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < size else None

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
        generation = getattr(getattr(self.model.hf, "generation_config", None), "eos_token_id", None)
        ids = self.model.hf.config.eos_token_id if generation is None else generation
        listed = list(ids) if isinstance(ids, list | tuple) else [ids]
        return [token for token in map(self.keep_id, listed) if token is not None]

    def keep_ids(self, token: object) -> object:
        """The ids of a setting that are in the vocabulary; None where none is."""
        if not isinstance(token, list):
            return self.keep_id(token)
        return [one for one in token if self.keep_id(one) is not None] or None

    def pad_id(self) -> int:
        """The padding token, or the first that ends a text."""
        pad = self.keep_id(getattr(self.model.hf.config, "pad_token_id", None))
        return next(iter(self.stop_ids), 0) if pad is None else pad


def name_model(task: str) -> str:
    """A name for the model of a task, of letters, digits, `-`, `_` and `.`: the task's, or that of its file."""
    stem = Path(task).stem if task.lower().endswith((".jsonl", ".csv")) else task
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
