"""Nothing that a tokenizer's files name becomes a path, and both versions of transformers load what one wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizer_files import byte_level, write_files

from exporter.errors import InputError
from exporter.loading.sources.tokenizer import load_tokenizer, save_tokenizer
from exporter.loading.sources.tokenizer_files import read_settings, stage_files

ANY = SimpleNamespace(vocab_size=10**9)


def load(folder: Path) -> Any:
    return load_tokenizer(folder, ANY)


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "a/b", "..", ".hidden", "a\\b", "", "x" * 200, 7, None])
@pytest.mark.parametrize("as_object", [False, True])
def test_a_chat_template_has_a_plain_name(name: Any, as_object: bool, tmp_path: Path) -> None:
    if as_object and not isinstance(name, str):
        return
    named = {name: "evil"} if as_object else [{"name": name, "template": "evil"}]
    folder = write_files(tmp_path / "m", byte_level(), chat_template=named)
    with pytest.raises(InputError, match=r"a chat template is called .* no plain name"):
        load(folder)
    assert list_tree(tmp_path) == {"m", *(f"m/{path.name}" for path in folder.iterdir())}


def test_only_our_names_are_written(tmp_path: Path) -> None:
    rows = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    tokenizer = load(write_files(tmp_path / "m", byte_level(), chat_template=rows))
    (tmp_path / "b").mkdir()
    tokenizer.chat_template["../../x"] = "evil"  # as if one had come through
    save_tokenizer(tokenizer, tmp_path / "b", longest=8)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"m", "b"}
    plain = load(write_files(tmp_path / "m", byte_level(), chat_template="{{ messages }}"))
    save_tokenizer(plain, tmp_path / "b", longest=8)
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_templates_of_a_folder_of_their_own_are_left(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", byte_level())
    (folder / "chat_template.jinja").write_text("mine")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "other.jinja").symlink_to("/etc/passwd")
    assert load(folder).chat_template == "mine"


def test_a_template_that_is_a_link_is_the_folders_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password")
    folder = write_files(tmp_path / "m", byte_level())
    (folder / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(InputError, match=r"chat_template\.jinja is a link that leads out of the checkpoint's folder"):
        load(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "real.txt").write_text("mine")
    (folder / "chat_template.jinja").symlink_to("real.txt")
    assert load(folder).chat_template == "mine"
    (folder / "chat_template.jinja").unlink()
    os.mkfifo(folder / "chat_template.jinja")  # which nobody writes to: it is no file, and not waited for
    assert load(folder).chat_template is None


def test_a_hub_caches_links_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_files(tmp_path / "m", byte_level())
    (tmp_path / "m" / "chat_template.jinja").write_text("mine")
    for path in (tmp_path / "m").iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load(snapshot).chat_template == "mine"
    (snapshot / "chat_template.jinja").unlink()
    (snapshot / "chat_template.jinja").symlink_to("../../m2")
    (tmp_path / "m2").write_text("outside")
    with pytest.raises(InputError, match="leads out"):
        load(snapshot)


def test_settings_that_name_files_are_not_followed(tmp_path: Path) -> None:
    outside = write_files(tmp_path / "other", byte_level(normalizer={"type": "Lowercase"}))
    keys = (
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "special_tokens_map_file",
        "added_tokens_file",
        "name_or_path",
    )
    named = dict.fromkeys(keys, str(outside / "tokenizer.json"))
    folder = write_files(
        tmp_path / "m", byte_level(), **named, init_inputs=[str(outside)], gguf_file="x", from_slow=True
    )
    plain = load(write_files(tmp_path / "plain", byte_level()))
    assert load(folder).encode("Paris") == plain.encode("Paris")
    (tmp_path / "stage").mkdir()
    stage_files(folder, tmp_path / "stage")
    staged = "".join(path.read_text() for path in (tmp_path / "stage").iterdir())
    assert str(tmp_path) not in staged


SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "never run"),
    "a path for a class": ({"tokenizer_class": "../../evil"}, "tokenizer_class is '../../evil', which is no name"),
    "a module for a class": ({"tokenizer_class": "os.system"}, "which is no name"),
    "a list for a class": ({"tokenizer_class": ["a"]}, "which is no name"),
    "a template that is no text": ({"chat_template": [{"name": "default", "template": 3}]}, "is no text"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_settings_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    settings, message = SPOILT[name]
    with pytest.raises(InputError, match=message):
        load(write_files(tmp_path / "m", byte_level(), **settings))


@pytest.mark.parametrize(
    "extra",
    [["<x>", "<y>"], [{"content": "<x>", "lstrip": False}, "<y>"], {"image_token": "<x>", "b": "<y>"}],
)
@pytest.mark.parametrize("name", ["extra_special_tokens", "additional_special_tokens"])
def test_special_tokens_in_a_list_load(extra: Any, name: str, tmp_path: Path) -> None:
    """transformers 5 writes a list under a name that holds an object in version 4."""
    if name == "additional_special_tokens" and isinstance(extra, dict):
        return
    data = byte_level()
    n_tokens = len(data["model"]["vocab"])
    folder = write_files(tmp_path / "m", data, **{name: extra})
    tokenizer = load(folder)
    assert tokenizer.encode("the<x>the") == [*tokenizer.encode("the"), n_tokens, *tokenizer.encode("the")]
    assert len(read_settings(folder)["additional_special_tokens"]) == 2


def test_a_class_that_only_version_5_knows_loads(tmp_path: Path) -> None:
    assert load(write_files(tmp_path / "m", byte_level(), tokenizer_class="TokenizersBackend")) is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer_config.json").write_text("[" * 100_000), "nests JSON too deep|not JSON"),
        (lambda folder: (folder / "special_tokens_map.json").write_text("[]"), "must be a JSON object"),
        (lambda folder: (folder / "vocab.json").write_text(json.dumps({"x" * 5000: 0})), "has 5,000 characters"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"), "cannot read .*chat_template"),
        (lambda folder: os.truncate(folder / "tokenizer.json", 2**40), "bytes, and at most"),
    ],
)
def test_files_that_are_none_are_refused(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", byte_level())
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load(folder)
