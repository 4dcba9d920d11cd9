"""A text is read in one way: by search, by `run`, from a bundle's tokenizer.json, and by transformers from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import make_bundle, make_dense, run_script
from tokenizer_files import byte_level, make_template, sentencepiece, word_level, write_files
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from exporter.circuit import Ablation
from exporter.errors import InputError
from exporter.loading.sources.reading import check_reading, find_lead, read_prompt, read_tokenizer
from exporter.loading.sources.tokenizer import load_tokenizer, save_tokenizer
from exporter.runtime.prompting import _take_backend

TEXTS = ("the cat sits", " the cat sits", "cat", "the  cat\n", "dog é", "<s> the cat", "", "a<|end|>the")
ANY = SimpleNamespace(vocab_size=10**9)

# The files, settings beside them, and the tokens put before each text.
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any], list[int]]] = {
    "GPT-2's": (byte_level, {}, []),
    "GPT-2's, ends in EOS": (lambda: byte_level(post_processor=make_template(last="<|end|>")), {}, []),
    "BOS and EOS": (
        lambda: byte_level(post_processor=make_template(first="<s>", last="<|end|>", first_id=1)),
        {"bos_token": "<s>", "eos_token": "<|end|>"},
        [1],
    ),
    "in a sequence": (
        lambda: byte_level(
            post_processor={
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                    make_template(first="<s>", first_id=1),
                ],
            }
        ),
        {},
        [1],
    ),
    "RoBERTa's": (
        lambda: byte_level(
            post_processor={
                "type": "RobertaProcessing", "sep": ["<|end|>", 0], "cls": ["<s>", 1],
                "trim_offsets": True, "add_prefix_space": False,
            }
        ),
        {},
        [1],
    ),
    "a space put first": (lambda: byte_level(prefix=True), {"add_prefix_space": True}, []),
    "settings put a space first": (byte_level, {"add_prefix_space": True}, []),
    "Qwen's class": (byte_level, {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}, []),
    "Llama's": (sentencepiece, {"bos_token": "<s>", "add_bos_token": True}, [1]),
    "Llama's class": (sentencepiece, {"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"}, [1]),
    "Llama's, ends in EOS": (
        lambda: sentencepiece(post_processor=make_template(first="<s>", last="</s>", first_id=1, last_id=2)),
        {"bos_token": "<s>", "eos_token": "</s>"},
        [1],
    ),
    "Metaspace": (lambda: sentencepiece(metaspace=True), {}, [1]),
    "words": (lambda: word_level(post_processor=make_template(first="<s>", first_id=1)), {}, [1]),
    "dropout": (lambda: byte_level(model={"dropout": 0.9}), {}, []),
    "cuts and pads": (
        lambda: byte_level(
            truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            padding={
                "strategy": {"Fixed": 2048}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "<|end|>",
            },
        ),
        {},
        [],
    ),
    "keeps no special token whole": (byte_level, {"split_special_tokens": True}, []),
}  # fmt: skip


def load(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder, ANY)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_every_reader_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    make, settings, lead = KINDS[name]
    folder = write_files(tmp_path / "m", make(), **settings)
    searched = load(folder)
    assert list(find_lead(searched.backend_tokenizer, folder)) == lead
    (tmp_path / "b").mkdir()
    save_tokenizer(searched, tmp_path / "b", longest=16)
    (tmp_path / "b" / "config.json").write_text('{"model_type": "gpt2"}')
    alone = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json"))
    readers = {
        "search": lambda text: [*lead, *searched.encode(text, add_special_tokens=False)],
        "again": lambda text: searched.encode(text),
        "run on an ONNX file": lambda text: _take_backend(folder).encode(text).ids,
        "run on a bundle": lambda text: read_prompt(read_tokenizer(tmp_path / "b" / "tokenizer.json"), text)[0],
        "run.py": lambda text: alone.encode(text).ids,
        "transformers": AutoTokenizer.from_pretrained(tmp_path / "b").encode,
    }
    for text in TEXTS:
        found = {reader: list(read(text)) for reader, read in readers.items()}
        assert len({tuple(ids) for ids in found.values()}) == 1, (text, found)
        assert found["search"][: len(lead)] == lead


@pytest.mark.parametrize("name", ["GPT-2's, ends in EOS", "settings put a space first", "Qwen's class", "Llama's"])
def test_what_transformers_reads_is_kept_but_for_the_end(name: str, tmp_path: Path) -> None:
    make, settings, lead = KINDS[name]
    folder = write_files(tmp_path / "m", make(), **settings)
    plain = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert list(load(folder).encode(text)) == [*lead, *plain.encode(text, add_special_tokens=False)]


def test_a_bundle_is_run_with_the_tokens_of_the_search(tmp_path: Path) -> None:
    """EOS is appended in the checkpoint, and to no prompt of ours."""
    data = word_level(post_processor=make_template(first="<s>", first_id=1, last="<unk>"))
    searched = load(write_files(tmp_path / "m", data))
    bundle = make_bundle(tmp_path / "b", form="plain", model=_with(searched), ablation=Ablation())  # of 6 tokens
    assert run_script(bundle.folder, "the cat sits on a").returncode == 0
    done = run_script(bundle.folder, "the cat sits on")
    assert "the prompt has 5 tokens, not 6" in done.stderr


def _with(tokenizer: Any) -> Any:
    from dataclasses import replace

    return replace(make_dense(), tokenizer=tokenizer)


def test_a_bundle_that_reads_prompts_otherwise_is_refused(tmp_path: Path) -> None:
    searched = load(write_files(tmp_path / "m", sentencepiece()))
    ids = searched.encode("the cat")
    save_tokenizer(searched, tmp_path, longest=16)
    path = tmp_path / "tokenizer.json"
    check_reading(path, searched, [("the cat", ids)], [ids])
    good = json.loads(path.read_text())
    spoilt: list[dict[str, Any]] = [
        {"post_processor": None},
        {"normalizer": None},
        {"post_processor": make_template(first="<s>", first_id=1, last="</s>", last_id=2)},
        {"normalizer": {"type": "Lowercase"}},
        {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
    ]
    for change in spoilt:
        path.write_text(json.dumps(good | change))
        for readings, examples in (([("the cat", ids)], []), ([], [ids])):
            with pytest.raises(InputError, match=r"would read the prompt .* tokens .* but the search read 3"):
                check_reading(path, searched, readings, examples)
    path.write_text(json.dumps(good))
    with pytest.raises(InputError, match="the search read 2"):
        check_reading(path, searched, [("the cat", ids[1:])], [])


def test_special_tokens_in_the_middle_or_that_differ_are_refused(tmp_path: Path) -> None:
    twice = make_template(first="<s>", first_id=1)
    twice["single"].append({"Sequence": {"id": "A", "type_id": 0}})
    with pytest.raises(InputError, match="gives the text 2 times"):
        load(write_files(tmp_path / "m", byte_level(post_processor=twice)))


def test_a_token_whose_name_has_spaces_and_colons_can_stand_first(tmp_path: Path) -> None:
    data = byte_level(post_processor=make_template(first="<s: 1>", first_id=1))
    data["model"]["vocab"]["<s: 1>"] = data["model"]["vocab"].pop("<s>")
    data["added_tokens"][1]["content"] = "<s: 1>"
    searched = load(write_files(tmp_path / "m", data))
    save_tokenizer(searched, tmp_path, longest=16)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the").ids[0] == 1


def test_slow_files_are_read_as_fast_ones(tmp_path: Path) -> None:
    data = byte_level()
    fast = load(write_files(tmp_path / "fast", data))
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (slow / "merges.txt").write_text("\n".join(["#version: 0.2", *data["model"]["merges"]]))
    (slow / "config.json").write_text('{"model_type": "gpt2"}')
    marks = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>")
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **marks}))
    assert load(slow).encode("the cat sits") == fast.encode("the cat sits")
    save_tokenizer(load(slow), tmp_path, longest=16)
    assert read_tokenizer(tmp_path / "tokenizer.json").encode("the cat sits").ids == fast.encode("the cat sits")


def test_a_prompt_that_no_tokenizer_reads_is_bad_input(tmp_path: Path) -> None:
    backend = load(write_files(tmp_path / "m", word_level(model={"unk_token": "<none>"}))).backend_tokenizer
    with pytest.raises(InputError, match="the tokenizer cannot read this prompt"):
        read_prompt(backend, "nobody knows this")
    assert read_prompt(backend, "the cat") == ([2, 3], 0)
