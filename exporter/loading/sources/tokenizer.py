"""A checkpoint's tokenizer, by way of transformers, settled to one reading of a text (see `reading`); and saved.

What is loaded here is searched with, saved in a bundle, and made again for an ONNX file alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError, refuse_panics
from exporter.files.names import TOKENIZER
from exporter.loading.sources.configuration import one_line
from exporter.loading.sources.framing import Readings, frame_tokenizer
from exporter.loading.sources.hub import TOKENIZERS
from exporter.loading.sources.quiet import quiet_transformers
from exporter.loading.sources.reading import read_probes, settle_backend
from exporter.loading.sources.tokenizer_files import MARKS, SETTINGS, TEMPLATE, read_settings, stage_files
from exporter.tasks.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights, settled, or None where there is none. Raises InputError."""
    import transformers

    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    kind: Any = transformers.AutoTokenizer
    if read_settings(folder).get("tokenizer_class") == "PreTrainedTokenizerFast":
        kind = transformers.PreTrainedTokenizerFast
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as stage:
        stage_files(folder, Path(stage))
        try:
            with quiet_transformers(), refuse_panics(f"the tokenizer in {folder} cannot be loaded"):
                tokenizer = kind.from_pretrained(stage, local_files_only=True, trust_remote_code=False)
        except InputError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            message = one_line(error).replace(stage, str(folder))
            raise InputError(f"the tokenizer in {folder} cannot be loaded: {message}") from error
    tokenizer.name_or_path = str(folder)
    return settle(check_tokenizer(tokenizer, config, folder), folder)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer; raises InputError when it has tokens that the model does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer in {source} has {tokenizer.vocab_size} tokens, but the model knows {config.vocab_size}; "
            "it belongs to another model"
        )
    # said once, when a prompt is longer than the tokenizer thinks; the model's own limit is what we hold prompts to
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def settle(tokenizer: PreTrainedTokenizerBase, source: Path | str) -> PreTrainedTokenizerBase:
    """Make the plain `encode` of a tokenizer and of its backend one reading; returns the tokenizer, changed.

    Raises InputError where there is no backend, or where special tokens stand in the middle of a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer in {source} has no {TOKENIZER}, and transformers cannot make one of it; save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) where it can"
        )
    settled: Any = tokenizer
    settled.split_special_tokens = settled.clean_up_tokenization_spaces = False
    settle_backend(backend, source)
    for text in read_probes(backend, source):
        if list(settled.encode(text)) != backend.encode(text).ids:
            raise InputError(f"the tokenizer in {source} reads {text!r} otherwise than its {TOKENIZER}; save it again")
    return tokenizer


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    longest: int,
    masked: bool = True,
    template: Template | None = None,
    readings: Readings = (),
) -> bool:
    """Write tokenizer.json and what transformers needs beside it, so that both give the one reading.

    longest: tokens that the model takes at most. masked: whether it takes a mask, and so padded prompts; for one that
    does not, no padding token is named, so that a batch of mixed lengths is refused instead of answered wrongly.
    template: what to put around each text, where that reads the `readings` as they were read; returns whether it does.
    The names of the files are ours. Raises InputError for a tokenizer that cannot be one tokenizer.json.
    """
    from tokenizers import Tokenizer

    settled: Any = tokenizer
    backend = settle_backend(Tokenizer.from_str(settled.backend_tokenizer.to_str()), "the model")  # not its own
    framed = None if template is None else frame_tokenizer(backend, template, readings)
    backend = framed or backend
    backend.save(str(folder / TOKENIZER))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # in both versions, and as tokenizer.json has it
        "model_max_length": longest,
        "model_input_names": ["input_ids", "attention_mask"] if masked else ["input_ids"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # answers stand at the end
        **_name_marks(settled, masked=masked),
    }
    splitter = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer is not None else {}
    if "add_prefix_space" in splitter:  # transformers 4 would set it to False
        settings["add_prefix_space"] = splitter["add_prefix_space"]
    chat = getattr(settled, "chat_template", None)
    if isinstance(chat, dict):
        settings["chat_template"] = [{"name": name, "template": text} for name, text in chat.items()]
    elif isinstance(chat, str):
        (folder / TEMPLATE).write_text(chat, encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return framed is not None


def _name_marks(tokenizer: Any, *, masked: bool) -> dict[str, str]:
    """The special tokens by name; where prompts are padded, with one to pad with, which the mask hides."""
    marks = {name: str(token) for name in MARKS if (token := getattr(tokenizer, name, None)) is not None}
    pad = marks.pop("pad_token", None) or marks.get("eos_token") or next(iter(marks.values()), None)
    return marks | ({"pad_token": pad} if masked and pad is not None else {})
