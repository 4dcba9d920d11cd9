"""The files of a tokenizer, read and checked by us, and written anew for transformers to load.

A tokenizer's files name other files (`vocab_file`, names of chat templates), and transformers opens and writes what
they name. It is given a folder of our own instead: known files only, under their known names, with known settings.
So nothing that a checkpoint says becomes a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import InputError
from exporter.files.names import TOKENIZER
from exporter.loading.sources.configuration import one_line, read_json, refuse_code
from exporter.loading.sources.reading import read_tokenizer_json
from exporter.loading.sources.tokenizer_bounds import LARGEST_FILE, check_token_lengths

SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
MARKS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have names."""
_LONGEST_TEMPLATE = 2**22  # bytes; some have a hundred kilobytes
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_KNOWN = {
    *MARKS, *_LISTED, "added_tokens_decoder", "tokenizer_class", "model_max_length", "model_input_names",
    "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "errors", "padding_side", "truncation_side",
    "clean_up_tokenization_spaces", "spaces_between_special_tokens", "do_lower_case", "strip_accents", "trim_offsets",
    "use_default_system_prompt", "fix_mistral_regex", "chat_template", "remove_space", "keep_accents",
}  # fmt: skip
_CONFIG = ("model_type", "tokenizer_class", "transformers_version")


def stage_files(folder: Path, stage: Path) -> None:
    """Write the tokenizer's files in `folder` to the empty folder `stage`, checked and cleaned. Raises InputError."""
    settings = read_settings(folder)
    _write(stage / SETTINGS, settings)
    if (config := folder / "config.json").is_file():
        fields = _read(config)
        _write(stage / config.name, {name: fields[name] for name in _CONFIG if isinstance(fields.get(name), str)})
    if (path := folder / TOKENIZER).is_file():
        _write(stage / TOKENIZER, read_tokenizer_json(path))
    for name in ("vocab.json", "added_tokens.json"):
        if (path := folder / name).is_file():
            vocabulary = _read(path)
            check_token_lengths(list(vocabulary), path)
            _write(stage / name, vocabulary)
    if (path := folder / "special_tokens_map.json").is_file():
        marks = _read(path)
        _write(stage / path.name, {name: marks[name] for name in (*MARKS, *_LISTED[:1]) if name in marks})
    if (path := folder / "merges.txt").is_file():
        _require_size(path, LARGEST_FILE)
        (stage / path.name).write_bytes(path.read_bytes().removesuffix(b"\n") + b"\n")  # else version 4 drops the last
    if (template := read_template(folder)) is not None:
        (stage / TEMPLATE).write_text(template, encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of tokenizer_config.json that we know, in the form that transformers 4 and 5 both read.

    Raises InputError where it asks for code, or names what is no name.
    """
    path = folder / SETTINGS
    fields = _read(path) if path.is_file() else {}
    refuse_code(fields, path)
    settings = {name: value for name, value in fields.items() if name in _KNOWN}
    kind = settings.get("tokenizer_class")
    if kind is not None and (not isinstance(kind, str) or not kind.isidentifier()):
        raise InputError(f"{path}: tokenizer_class is {str(kind)[:60]!r}, which is no name; get the tokenizer again")
    if kind == "TokenizersBackend":  # what transformers 5 writes, and 4 does not know
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    named, listed = settings.pop("extra_special_tokens", None), settings.pop("additional_special_tokens", None)
    extra = [*(listed or ()), *(named.values() if isinstance(named, dict) else named or ())]
    if extra:  # transformers 4 takes no list under the one name, 5 takes the other for it
        settings["additional_special_tokens"] = list({_spell(token): _mark(token) for token in extra}.values())
    if isinstance(templates := settings.get("chat_template"), list | dict):
        settings["chat_template"] = _check_templates(templates, path)
    return settings


def _mark(token: object) -> object:
    """A special token as transformers reads it among others: as text, or as an object that says what it is."""
    return {**token, "__type": "AddedToken"} if isinstance(token, dict) else str(token)


def _spell(token: object) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _check_templates(templates: Any, path: Path) -> list[dict[str, str]]:
    """Chat templates with names; a name becomes a file's in transformers, so it is a plain one."""
    rows = [{"name": name, "template": text} for name, text in templates.items()] if isinstance(templates, dict) else []
    rows = rows or list(templates)
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else row
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise InputError(
                f"{path}: a chat template is called {str(name)[:60]!r}, which is no plain name (letters, digits, _ and "
                "-); rename it, or take it out"
            )
        if not isinstance(row.get("template"), str):
            raise InputError(f"{path}: the chat template {name!r} is no text; mend it, or take it out")
    return [{"name": row["name"], "template": row["template"]} for row in rows]


def read_template(folder: Path) -> str | None:
    """chat_template.jinja, or None where there is none. Raises InputError where it is a file of elsewhere."""
    path = folder / TEMPLATE
    if not path.is_file():
        return None
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(allowed) for allowed in homes):
        raise InputError(
            f"{path} is a link that leads out of the checkpoint's folder, and a bundle would hold a copy of it; put "
            "the file itself there, or take the link away"
        )
    _require_size(path, _LONGEST_TEMPLATE)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    _require_size(path, LARGEST_FILE)
    try:
        return read_json(path)
    except RecursionError:
        raise InputError(f"{path} nests JSON too deep; get the tokenizer again") from None


def _require_size(path: Path, most: int) -> None:
    if (size := path.stat().st_size) > most:
        raise InputError(f"{path} has {size:,} bytes, and at most {most:,} are read; get the tokenizer again")


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
