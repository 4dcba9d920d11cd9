"""Configurations of all families: sizes under their own names, and what older and newer transformers call things."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_files import make_llama
from transformers import LlamaForCausalLM

from exporter.errors import InputError
from exporter.families import FAMILIES
from exporter.loading import bundled_path, load_model
from exporter.sources.configuration import REFUSED, check_config, read_config

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
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, and models of type llama rotate whole heads"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **fields)


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
