"""Checkpoint folders: what is loaded, and that each way to be damaged is refused in one line."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import edit_weights, put_nan
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, make_model, make_prompts

from exporter.errors import InputError
from exporter.loading.load import load_model

Save = Callable[..., Path]


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_loads_as_the_same_model(save_gpt2: Save) -> None:
    folder = save_gpt2()
    model = load_model(folder)
    saved = load_file(folder / "model.safetensors")
    state = model.hf.state_dict()
    assert (model.name, model.family, model.revision, model.notes) == (str(folder), "gpt2", None, ())
    assert model.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.tokenizer is None
    assert not model.hf.training
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(save_gpt2: Save, dtype: torch.dtype) -> None:
    model = load_model(save_gpt2(dtype=dtype))
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.float32}


def test_names_without_prefix_and_causal_masks_load_as_in_the_original_files(save_gpt2: Save) -> None:
    folder = save_gpt2()
    wanted = load_model(folder).hf.state_dict()

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()

    edit_weights(folder, strip)
    state = load_model(folder).hf.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def test_shards_load_and_are_hashed_in_the_order_of_their_names(save_gpt2: Save) -> None:
    folder = save_gpt2()
    wanted = load_model(folder).hf.state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00002-of-00002.safetensors": names[:5], "model-00001-of-00002.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model = load_model(folder)
    assert all(torch.equal(model.hf.state_dict()[name], tensor) for name, tensor in wanted.items())
    joined = b"".join((folder / file).read_bytes() for file in sorted(parts))
    assert model.sha256 == hashlib.sha256(joined).hexdigest()
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00001-of-00002\.safetensors"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(InputError, match="no usable 'weight_map'"):
        load_model(folder)


def test_an_untied_unembedding_is_kept(save_gpt2: Save) -> None:
    folder = save_gpt2(tie_word_embeddings=False)
    state = load_model(folder).hf.state_dict()
    assert not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"lacks the tensor lm_head\.weight"):
        load_model(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", VARIANTS)
def test_what_any_family_saves_is_loaded_as_the_same_model(family: str, tied: bool, tmp_path: Path) -> None:
    hf, ids = make_model(family, tied=tied).hf, make_prompts(3, 5).input_ids
    hf.save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(tmp_path).dense(ids), hf(ids).logits, rtol=1e-4, atol=1e-5)


def drop_tensor(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))


def put_inf(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["transformer.wpe.weight"][3].fill_(math.inf))


def quantize(folder: Path) -> None:
    edit_weights(
        folder, lambda tensors: tensors.update({"transformer.wte.weight": torch.zeros(30, 8, dtype=torch.int8)})
    )


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def leave_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
    (folder / "model.safetensors").write_text(pointer)


def leave_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def name_tokenizer_code(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}')


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{,"), "is not JSON"),
    "config not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "is not JSON"),
    "config not an object": (lambda folder: (folder / "config.json").write_text("[1]"), "must be a JSON object"),
    "other family": (lambda folder: edit_config(folder, model_type="bloom"), r"'bloom'; known: gpt2"),
    "mixture of experts": (lambda folder: edit_config(folder, model_type="mixtral"), "mixtral cannot.*mixture of exp"),
    "sliding window": (lambda folder: edit_config(folder, model_type="gemma2"), "gemma2 cannot be.*sliding window"),
    "both": (lambda folder: edit_config(folder, model_type="gpt_oss"), "gpt_oss cannot.*experts.*, and .* window"),
    "encoder": (lambda folder: edit_config(folder, model_type="t5"), "t5 cannot be exported: it has an encoder"),
    "recurrent": (lambda folder: edit_config(folder, model_type="mamba"), "mamba cannot.*recurrent layers"),
    "no family": (lambda folder: edit_config(folder, model_type=None), r"unknown model_type None; known: gpt2"),
    "other head": (
        lambda folder: edit_config(folder, architectures=["GPT2ForSequenceClassification"]),
        r"GPT2ForSequenceClassification.*known: gpt2 \(GPT2LMHeadModel\)",
    ),
    "own code": (
        lambda folder: edit_config(folder, model_type="own", auto_map={"AutoConfig": "evil.Config"}),
        r"unknown model_type 'own'; its own code \(auto_map\) is never run; known: gpt2",
    ),
    "quantization": (lambda folder: edit_config(folder, quantization_config={}), "quantized"),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter"),
    "cross-attention": (lambda folder: edit_config(folder, add_cross_attention=True), "cross-attention"),
    "activation": (lambda folder: edit_config(folder, activation_function="sine"), "unknown activation 'sine'"),
    "zero layers": (lambda folder: edit_config(folder, n_layer=0), "num_hidden_layers is 0"),
    "negative size": (lambda folder: edit_config(folder, n_embd=-8), "hidden_size is -8"),
    "size of a wrong type": (lambda folder: edit_config(folder, n_head="two"), r"config\.json.*(two|str)"),
    "heads do not divide": (lambda folder: edit_config(folder, n_head=3), "3 heads do not divide d_model 8"),
    "epsilon": (lambda folder: edit_config(folder, layer_norm_epsilon=-1.0), "layer_norm_epsilon is -1"),
    "too many layers": (lambda folder: edit_config(folder, n_layer=10**9), "1000000000 layers"),
    "huge vocabulary": (lambda folder: edit_config(folder, vocab_size=10**12), r"wte\.weight is \(30, 8\)"),
    "absurd vocabulary": (lambda folder: edit_config(folder, vocab_size=10**30), r"config\.json"),
    "more layers than weights": (lambda folder: edit_config(folder, n_layer=3), r"lacks the tensor transformer\.h\.2"),
    "shape mismatch": (
        lambda folder: edit_config(folder, n_positions=17),
        r"transformer\.wpe\.weight is \(16, 8\), but config\.json makes it \(17, 8\)",
    ),
    "missing tensor": (drop_tensor, r"lacks the tensor transformer\.h\.1\.mlp\.c_fc\.weight"),
    "NaN": (put_nan, r"transformer\.h\.0\.ln_1\.bias holds NaN or Inf"),
    "Inf": (put_inf, r"transformer\.wpe\.weight holds NaN or Inf"),
    "int8 weights": (quantize, r"transformer\.wte\.weight is I8"),
    "truncated": (truncate, "truncated"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated"),
    "LFS pointer": (leave_lfs_pointer, "Git LFS pointer.*git lfs pull"),
    "pickle": (leave_pickle, r"pickle \(pytorch_model\.bin\)"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors"),
    "broken tokenizer": (break_tokenizer, "tokenizer in .* cannot be loaded"),
    "tokenizer with code": (name_tokenizer_code, "never run"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(save_gpt2: Save, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, message = DAMAGE[damage]
    folder = save_gpt2()
    spoil(folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        load_model(folder)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 450
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_of_another_model_is_refused(save_gpt2: Save) -> None:
    folder = save_gpt2()
    (folder / "tokenizer.json").write_text(tokenizer_json(31))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="has 31 tokens, but the model knows 30"):
        load_model(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(30))
    tokenizer = load_model(folder).tokenizer
    assert tokenizer is not None
    assert tokenizer("w7")["input_ids"] == [7]


def tokenizer_json(size: int) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return str(tokenizer.to_str())


def test_loading_is_silent_and_leaves_logging_as_it_was(save_gpt2: Save, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    folder = save_gpt2()
    edit_config(folder, pad_token_id=-1, eos_token_id=[0, 99], bos_token_id=30)
    edit_weights(folder, lambda tensors: tensors.update({"v_head.summary.weight": torch.zeros(1, 8)}))
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)
    load_model(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)) == before
    assert capfd.readouterr() == ("", "")


def test_a_prompt_longer_than_the_tokenizer_thinks_is_tokenised_silently(
    save_gpt2: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_gpt2()
    (folder / "tokenizer.json").write_text(tokenizer_json(30))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_model(folder).tokenizer
    assert tokenizer is not None
    capfd.readouterr()
    assert tokenizer("w7 w8 w9")["input_ids"] == [7, 8, 9]
    assert capfd.readouterr() == ("", "")


def test_the_folder_is_not_changed(save_gpt2: Save) -> None:
    folder = save_gpt2()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load_model(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
