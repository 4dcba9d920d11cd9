"""Configurations of all families: sizes under their own names, and what older and newer transformers call things."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf_files import make_llama
from transformers import LlamaForCausalLM

from exporter.errors import InputError
from exporter.loading.families import FAMILIES
from exporter.loading.load import bundled_path, load_model
from exporter.loading.sources.configuration import REFUSED, check_config, read_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}


def read(folder: Path, **fields: object) -> object:
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))
    return read_config(folder)


def test_heads_need_not_divide_the_width_where_their_size_is_given() -> None:
    config = SimpleNamespace(**LLAMA | {"num_attention_heads": 6, "head_dim": 10})
    check_config(config, Path("config.json"))
    config.head_dim = None
    with pytest.raises(InputError, match="6 heads do not divide d_model 32"):
        check_config(config, Path("config.json"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, "3 key-value heads do not divide 4 heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; it must be an integer from 1"),
        ({"head_dim": -8}, "head_dim is -8"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0; it must be a number above 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0"),
        ({"is_encoder_decoder": True}, "cannot be exported: it has an encoder"),
        ({"architectures": 5}, "architecture 5 is no language model that is known"),
        ({"architectures": {"a": 1}}, "architecture .* is no language model that is known"),
        ({"attention_bias": "false"}, "attention_bias is 'false'; it must be true or false"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None; it must be true or false"),
        ({"mlp_bias": 1}, "mlp_bias is 1; it must be true or false"),
        ({"hidden_act": ["silu"]}, "(unknown activation|hidden_act).*silu"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"pad_token_id": 3.0}, "pad_token_id"),
        ({"is_causal": False}, "is_causal is False; give a model that attends to earlier tokens only"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is set; give the checkpoint from before"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"the weights are quantized \(gptq\); give"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized \(awq\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"quantized \(MLX\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"pad_token_id": 40}, "pad_token_id is 40, but the vocabulary has the ids 0 to 39; make it null"),
        ({"pad_token_id": -2}, "pad_token_id is -2"),
        ({"pad_token_id": 10**9}, "pad_token_id is 1000000000"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        (
            {"rope_scaling": {"rope_type": "su", "factor": 2.0}},
            "unknown rope_type 'su' in rope_scaling; known: default, li",
        ),
        ({"rope_scaling": {"type": "mrope"}}, "unknown rope_type 'mrope' in rope_scaling"),
        ({"rope_parameters": {"rope_type": "own", "rope_theta": 5.0}}, "unknown rope_type 'own' in rope_parameters"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "unknown rope_type .*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "of rope_type 'linear' needs the number factor, not None"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": "4"}},
            "of rope_type 'yarn' needs the number factor, not '4'",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "'llama3' needs the number low_freq_factor, not None",
        ),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}, "needs the list of numbers short_factor"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "rope_type 'yarn' and type 'linear'",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "has a factor and no rope_type; add one of default, linear"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object with a rope_type, or null"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs by layer"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'; it must be a number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, and models of type llama rotate whole heads"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **fields)


HARMLESS: dict[str, dict[str, object]] = {
    "flash attention": {"_attn_implementation": "flash_attention_2"},
    "a kernel of the hub": {"attn_implementation": "kernels-community/flash-attn", "_attn_implementation": "own"},
    "experts": {"_experts_implementation": "grouped_mm", "_flash_attn_2_enabled": True},
    "null quantization": {"quantization_config": None, "compression_config": None, "quantization": None},
    "null code": {"auto_map": None},
    "no code": {"auto_map": {}},
    "no padding": {"pad_token_id": -1},
    "null padding": {"pad_token_id": None},
    "first and last tokens beyond the vocabulary": {"bos_token_id": 50256, "eos_token_id": -1},
    "tuples, plain output, more outputs": {"return_dict": False, "torchscript": True, "output_attentions": True},
    "no pruned heads": {"pruned_heads": {}},
    "null causality": {"is_causal": None},
    "other weights": {"transformers_weights": "other.safetensors"},
    "its architecture as a word": {"architectures": "LlamaForCausalLM"},
    "no architecture": {"architectures": None},
    "labels": {"problem_type": "own", "id2label": {"x": "y"}, "num_labels": "two"},
    "a dtype of nobody's": {"dtype": "float8_e4m3fn", "torch_dtype": "own"},
    "fusion": {"fusion_config": {"x": 1}},
    "no scaling": {"rope_scaling": None},
    "a name of nobody's": {"_name_or_path": "/home/somebody/model", "_commit_hash": "x", "field": {"deep": [1]}},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_are_the_loaders_business_change_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hf = make_llama()
    hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | HARMLESS[name]))
    capfd.readouterr()
    model = load_model(tmp_path)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model.hf(ids).logits, hf(ids).logits)
    torch.testing.assert_close(model.dense(ids), hf(ids).logits)
    config = model.hf.config
    assert (config.pad_token_id, config.eos_token_id in (None, 2)) == (None, True)
    assert config._attn_implementation == "eager"
    assert not getattr(config, "auto_map", None)
    assert model.notes == ()
    assert capfd.readouterr() == ("", "")


def test_code_of_the_checkpoints_own_is_not_run_and_that_is_said(tmp_path: Path) -> None:
    hf = make_llama()
    hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own}))
    (tmp_path / "evil.py").write_text("raise SystemExit(99)")
    model = load_model(tmp_path)
    assert model.notes == ("code of the checkpoint's own (evil.Config) is not run: transformers' llama computes",)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model.hf(ids).logits, hf(ids).logits)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "evil"}))
    with pytest.raises(InputError, match=r"'evil'; its own code \(auto_map\) is never run; known: gpt2"):
        load_model(tmp_path)


def test_the_tokens_that_end_a_text_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": [3, 40, -1], "bos_token_id": 99, "pad_token_id": -1}')
    found = load_model(tmp_path).hf.generation_config
    assert (found.eos_token_id, found.bos_token_id) == (3, None)
    path.write_text('{"eos_token_id": 7, "watermarking_config": {"odd": 1}}')
    assert load_model(tmp_path).hf.generation_config.eos_token_id == 7
    path.write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json is not JSON"):
        load_model(tmp_path)
    path.write_text('{"eos_token_id": "x"}')
    with pytest.raises(InputError, match="eos_token_id is 'x'; it must be a token id, or null"):
        load_model(tmp_path)


def test_json_that_is_nested_without_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)


def test_every_refused_type_says_why(tmp_path: Path) -> None:
    for model_type, reason in REFUSED.items():
        with pytest.raises(InputError, match=f"models of type {model_type} cannot be exported: {reason[:20]}"):
            read(tmp_path, model_type=model_type)
    assert not REFUSED.keys() & FAMILIES.keys()


@pytest.mark.parametrize(
    "rotary",
    [{"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}],
    ids=["as transformers 4 saves it", "as transformers 5 saves it"],
)
def test_rotary_frequencies_are_the_checkpoints_whoever_saved_it(rotary: dict[str, object], tmp_path: Path) -> None:
    hf: LlamaForCausalLM = make_llama()
    hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in saved.items() if not k.startswith("rope_")} | rotary))
    found = load_model(tmp_path).hf.model.rotary_emb.inv_freq
    assert found.tolist() == hf.model.rotary_emb.inv_freq.tolist()
    assert found[1] == pytest.approx(500.0**-0.25)


@pytest.mark.parametrize(
    "rotary",
    [{"rope_theta": -500.0}, {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": float("nan")}}],
    ids=str,
)
def test_rotary_settings_without_finite_frequencies_are_refused(rotary: dict[str, object], tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in saved.items() if not k.startswith("rope_")} | rotary))
    with pytest.raises(InputError, match="no finite frequencies; mend rope_theta and factor"):
        load_model(tmp_path).dense  # noqa: B018  # built when it is asked for


def test_a_tokenizer_that_transformers_5_saved_is_read(tmp_path: Path) -> None:
    hf = make_llama()
    hf.resize_token_embeddings(50257)
    hf.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((bundled_path() / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    tokenizer = load_model(tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer("The Chief Executive Officer (CE")["input_ids"] == [464, 5953, 10390, 10391, 357, 5222]
