"""GGUF files: the same model as the one they were written from, and each way to be wrong refused in one line."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import N_TOKENS, make_gpt2, make_llama, read_tensors, write_gguf

from exporter.errors import InputError
from exporter.loading.load import load_model

MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": make_gpt2,
    "gpt2, untied": lambda: make_gpt2(tied=False),
    "llama": make_llama,
    "llama, wide heads": lambda: make_llama(d_head=12),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_loads_as_the_model_it_was_written_from(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hf = MODELS[name]()
    path = write_gguf(tmp_path / "model.gguf", hf)
    capfd.readouterr()
    model = load_model(path)
    assert capfd.readouterr() == ("", "")
    state = model.hf.state_dict()
    assert {key: tensor.dtype for key, tensor in state.items()} == dict.fromkeys(hf.state_dict(), torch.float32)
    assert all(torch.equal(state[key], tensor) for key, tensor in hf.state_dict().items())
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model.hf(ids).logits, hf(ids).logits)
    assert not model.hf.training and not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert (model.name, model.revision, model.family) == (str(path), None, name.split(",")[0])
    assert model.notes == (f"{path} is dequantised from F32 to fp32",)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.tokenizer is not None
    assert model.tokenizer("cab<26>")["input_ids"] == [2, 25, 26]
    assert "quantization_config" not in model.hf.config.to_dict()
    model.hf.save_pretrained(tmp_path / "saved")  # nothing of it counts as quantised any more
    assert load_model(tmp_path / "saved").hf.state_dict().keys() == state.keys()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "BF16"])
def test_quantised_tensors_are_dequantised_as_gguf_does(kind: str, tmp_path: Path) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    hf = make_gpt2()
    path = write_gguf(tmp_path / "m.gguf", hf, quantise=lambda _, value: quantised if value.ndim == 2 else None)
    model = load_model(str(path))
    embedding = read_tensors(hf)["token_embd.weight"]
    wanted = gguf.dequantize(gguf.quantize(embedding, quantised), quantised)
    found = model.hf.state_dict()["transformer.wte.weight"].numpy()
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(found, embedding)
    assert model.notes[0].endswith(f"is dequantised from {'BF16, F32' if kind == 'BF16' else kind} to fp32") or (
        kind == "F16" and model.notes[0].endswith("F16, F32 to fp32")
    )


@pytest.mark.parametrize("name", ["gpt2, untied", "llama"])
def test_a_narrow_dtype_rounds_and_float32_is_read_again(name: str, tmp_path: Path) -> None:
    hf = MODELS[name]()
    model = load_model(write_gguf(tmp_path / "m.gguf", hf), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    state = model.to_float32().hf.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in hf.state_dict().items())
    assert load_model(tmp_path / "m.gguf", dtype="auto").hf.dtype == torch.float32


def test_a_file_without_tokenizer_needs_the_size_of_its_vocabulary(tmp_path: Path) -> None:
    none = {f"tokenizer.ggml.{name}": None for name in ("model", "pre", "tokens", "token_type", "merges")}
    model = load_model(write_gguf(tmp_path / "m.gguf", make_llama(), settings=none))
    assert model.tokenizer is None
    assert model.hf.config.vocab_size == N_TOKENS


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def patch(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def patch_after(path: Path, name: str, skip: int, data: bytes) -> None:
    """Overwrite what stands `skip` bytes behind a name."""
    patch(path, path.read_bytes().index(name.encode()) + len(name) + skip, data)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a GGUF": (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "is no GGUF file; give a .gguf file"),
    "empty": (lambda path: path.write_bytes(b""), "is no GGUF file"),
    "only the magic": (lambda path: cut(path, 4), "truncated or damaged"),
    "cut in the head": (lambda path: cut(path, 300), "truncated or damaged"),
    "cut in the tensors": (lambda path: cut(path, path.stat().st_size - 200), "is truncated: it has"),
    "old version": (lambda path: patch(path, 4, struct.pack("<I", 1)), "GGUF version 1, known: 2, 3"),
    "big-endian": (lambda path: patch(path, 4, struct.pack(">I", 3)), "little-endian"),
    "absurd settings": (lambda path: patch(path, 16, struct.pack("<Q", 1 << 60)), "truncated or damaged"),
    "absurd tensors": (lambda path: patch(path, 8, struct.pack("<Q", 1 << 60)), "unknown type|truncated or damaged"),
    "absurd array": (
        lambda path: patch_after(path, "ggml.token_type", 8, struct.pack("<Q", 1 << 60)),
        "truncated or damaged",
    ),
    "absurd string": (lambda path: patch(path, 24, struct.pack("<Q", 1 << 60)), "truncated or damaged"),
    "not UTF-8": (lambda path: patch(path, 32, b"\xff\xfe"), "truncated or damaged"),
    "unknown kind of tensor": (
        lambda path: patch_after(path, "token_embd.weight", 4 + 16, struct.pack("<I", 99)),
        "token_embd.weight is of the unknown type 99",
    ),
    "absurd shape": (
        lambda path: patch_after(path, "token_embd.weight", 4, struct.pack("<Q", 1 << 60)),
        "is truncated: it has",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_gpt2())
    spoil, message = SPOILED[name]
    spoil(path)
    assert_refused(path, message, capfd)


def assert_refused(path: Path, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 450
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"architecture": "bloom"}, "unknown GGUF architecture 'bloom'; known: gpt2, llama"),
    "sliding windows": ({"architecture": "gemma2"}, "gemma2 cannot be exported: some of its layers.*window"),
    "mixture": ({"architecture": "qwen3moe"}, "qwen3moe cannot be exported: it is a mixture of experts"),
    "experts": ({"settings": {"llama.expert_count": 8}}, r"llama\.expert_count \(8\) is not honoured"),
    "window": ({"settings": {"llama.attention.sliding_window": 4.5}}, "sliding_window is 4.5; it must be an integer"),
    "rotary scaling": ({"settings": {"llama.rope.scaling.type": "yarn"}}, r"rope\.scaling\.type \(yarn\)"),
    "partly rotary": ({"settings": {"llama.rope.dimension_count": 4}}, "dimension_count is 4, but heads have 8"),
    "value length": ({"settings": {"llama.attention.value_length": 4}}, "value_length is 4, but heads have 8"),
    "no key-value heads": ({"settings": {"llama.attention.head_count_kv": None}}, "head_count_kv is None"),
    "no layers": ({"settings": {"llama.block_count": 0}}, "block_count is 0; it must be an integer from 1"),
    "too many layers": ({"settings": {"llama.block_count": 10**9}}, "1000000000 layers, but has 20 tensors"),
    "another width": ({"settings": {"llama.feed_forward_length": 65}}, "but its settings make a model of 20"),
    "one of several parts": ({"settings": {"split.count": 3}}, "one of 3 parts; merge them"),
    "frequencies": ({"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, "scales its rotary frequencies"),
    "unknown tensor": ({"tensors": {"odd.weight": np.ones(4, np.float32)}}, r"has no place for the tensor odd\.weight"),
    "a bias more": ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, r"no place .* blk\.0\.attn_q\.bias"),
    "a bias of the head": ({"tensors": {"output.bias": np.ones(40, np.float32)}}, r"no place .* output\.bias"),
    "a layer more": ({"settings": {"llama.block_count": 1}}, r"no place for the tensor blk\.1\.attn_k\.weight"),
    "lacks a tensor": ({"tensors": {"blk.1.ffn_up.weight": None}}, r"lacks the tensor blk\.1\.ffn_up\.weight"),
    "unknown name": (
        {"tensors": {"blk.1.ffn_up.weight": None, "blk.1.ffn_on.weight": np.ones((64, 32), np.float32)}},
        r"lacks the tensor blk\.1\.ffn_up\.weight",
    ),
    "transposed": ({"tensors": {"blk.1.ffn_up.weight": np.ones((32, 64), np.float32)}}, "cannot be loaded"),
    "NaN": ({"tensors": {"output_norm.weight": np.full(32, math.nan, np.float32)}}, "norm.weight holds NaN or Inf"),
    "epsilon": ({"settings": {"llama.attention.layer_norm_rms_epsilon": 0.0}}, "rms_norm_eps is 0.0"),
    "splitting rule": ({"settings": {"tokenizer.ggml.pre": "odd"}}, "splits text by the unknown rule 'odd'"),
    "no merges": ({"settings": {"tokenizer.ggml.merges": None}}, r"no merges \(tokenizer\.ggml\.merges\).*; convert"),
    "no tokens": ({"settings": {"tokenizer.ggml.tokens": None}}, r"no tokens \(tokenizer\.ggml\.tokens\).*; convert"),
    "part without head": (
        {"settings": {"general.architecture": None, "split.count": 2}},
        "one of 2 parts; merge them: llama-gguf-split --merge",
    ),
    "padding beyond the vocabulary": (
        {"settings": {"tokenizer.ggml.padding_token_id": N_TOKENS}},
        "pad_token_id is 40, but the vocabulary has the ids 0 to 39",
    ),
    "bad merges": ({"settings": {"tokenizer.ggml.merges": ["zz zz"]}}, "tokenizer in .* cannot be loaded"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_would_not_come_through_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, message = UNFIT[name]
    assert_refused(write_gguf(tmp_path / "m.gguf", make_llama(), **arguments), message, capfd)


def test_only_gguf_files_and_nothing_that_does_not_apply(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_gpt2())
    with pytest.raises(InputError, match="revision 'main' is for a hub name; a file has none"):
        load_model(path, revision="main")
    with pytest.raises(InputError, match="cannot be spread by a device map"):
        load_model(path, device_map={"": "cpu"})
    with pytest.raises(InputError, match="no folder or file"):
        load_model("org/model.gguf")
    with pytest.raises(InputError, match=r"holds GGUF files; give the file itself: .*m\.gguf"):
        load_model(tmp_path)


def test_a_suffix_in_capitals_is_the_same(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "M.GGUF", make_llama())
    assert load_model(path).family == "llama"
    with pytest.raises(InputError, match=r"no folder or file 'org/M\.GGUF'"):
        load_model("org/M.GGUF")


@pytest.mark.parametrize(("window", "longest"), [(0, 16), (5, 5), (16, 16), (4096, 16)])
def test_a_window_bounds_the_length(window: int, longest: int, tmp_path: Path) -> None:
    hf = make_llama()
    model = load_model(write_gguf(tmp_path / "m.gguf", hf, settings={"llama.attention.sliding_window": window}))
    assert model.dense.max_length == longest
    ids = torch.arange(longest)[None]
    torch.testing.assert_close(model.dense(ids), hf(ids).logits)
    with pytest.raises(InputError, match=f"longer than the model's {longest} positions"):
        model.dense(torch.arange(longest + 1)[None])


def test_one_of_several_files_is_known_by_its_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m-00002-of-00003.gguf", make_llama())
    with pytest.raises(InputError, match=r"one of 3 parts.*--merge .*m-00001-of-00003\.gguf whole\.gguf"):
        load_model(path)
    assert load_model(path.rename(tmp_path / "m-00001-of-00001.gguf")).family == "llama"


@pytest.mark.parametrize("padding", [2**32 - 1, 3])
def test_no_padding_token_is_none(padding: int, tmp_path: Path) -> None:
    model = load_model(
        write_gguf(tmp_path / "m.gguf", make_llama(), settings={"tokenizer.ggml.padding_token_id": padding})
    )
    assert model.hf.config.pad_token_id == (3 if padding == 3 else None)
