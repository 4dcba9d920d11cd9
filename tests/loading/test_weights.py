"""Stored tensors against the model's places, both ways: in every family, under other names, tied or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiers import diagonal
from tiny import VARIANTS, make_model, make_prompts

from exporter.errors import InputError
from exporter.loading.families import FAMILIES
from exporter.loading.load import load_model
from exporter.loading.sources.weights import read_headers

Tensors = dict[str, torch.Tensor]
IDS = make_prompts(3, 5).input_ids


def save(folder: Path, family: str = "llama", *, change: Callable[[Tensors], object] = id, **options: Any) -> Any:
    """Save a tiny model with its tensors changed; returns the model."""
    hf = make_model(family, **options).hf
    hf.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return hf


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(change: Callable[[str], str]) -> Callable[[Tensors], None]:
    def rename_all(tensors: Tensors) -> None:
        renamed = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    return rename_all


def add(**extra: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name.replace("__", "."): value for name, value in extra.items()})


def assert_same(folder: Path, hf: Any) -> None:
    model = load_model(folder)
    state, wanted = model.hf.state_dict(), hf.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    torch.testing.assert_close(model.dense(IDS), hf(IDS).logits, rtol=1e-4, atol=1e-5)


def layer_tensors(tensors: Tensors, family: str) -> list[str]:
    return sorted(name for name in tensors if ".1." in name)


@pytest.mark.parametrize("family", VARIANTS)
def test_one_layer_more_is_refused_with_the_number_to_set(family: str, tmp_path: Path) -> None:
    save(tmp_path, family, n_layers=3)
    edit_config(tmp_path, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 2, "layer_types": None})
    with pytest.raises(
        InputError, match=r"no place for the tensor .*\.2\..*; if it is meant, set num_hidden_layers to 3"
    ):
        load_model(tmp_path)
    edit_config(tmp_path, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    with pytest.raises(
        InputError, match=r"no place for the tensor .*\.1\..*; if it is meant, set num_hidden_layers to 3"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("family", VARIANTS)
def test_any_tensor_more_is_refused_by_its_name(family: str, prefixed: bool, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        like = next(name for name in tensors if ".1." in name and name.endswith(".weight"))
        tensors[like.replace(".weight", ".extra")] = torch.zeros(3)
        if not prefixed:
            base = make_model(family).hf.base_model_prefix
            rename(lambda name: name.removeprefix(f"{base}."))(tensors)

    save(tmp_path, family, change=spoil)
    with pytest.raises(InputError, match=r"no place for the tensor .*\.extra \(type " + family) as caught:
        load_model(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("family", "field", "tensor"),
    [
        ("llama", "mlp_bias", r"model\.layers\.0\.mlp\.down_proj\.bias"),
        ("llama", "attention_bias", r"model\.layers\.0\.self_attn\.k_proj\.bias"),
        ("qwen3", "attention_bias", r"model\.layers\.0\.self_attn\.k_proj\.bias"),
        ("gpt_neox", "attention_bias", r"gpt_neox\.layers\.0\.attention\.dense\.bias"),
        ("starcoder2", "use_bias", r"model\.layers\.0\.mlp\.c_fc\.bias"),
    ],
)
def test_biases_that_a_switch_turns_off_are_refused_with_the_switch(
    family: str, field: str, tensor: str, tmp_path: Path
) -> None:
    hf = save(tmp_path, family, **{field: True})
    assert_same(tmp_path, hf)
    edit_config(tmp_path, **{field: False})
    with pytest.raises(InputError, match=f"no place for the tensor {tensor}; if it is meant, set {field} to true"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", VARIANTS)
def test_a_bias_of_the_unembedding_has_no_place(family: str, tmp_path: Path) -> None:
    save(tmp_path, family, change=add(lm_head__bias=torch.zeros(37)))
    with pytest.raises(InputError, match=rf"no place for the tensor lm_head\.bias \(type {family}\)"):
        load_model(tmp_path)


def test_a_setting_is_not_advised_that_would_miss_others(tmp_path: Path) -> None:
    save(tmp_path, change=lambda t: t.update({"model.layers.0.self_attn.k_proj.bias": torch.zeros(8)}))
    with pytest.raises(InputError, match=r"k_proj\.bias \(type llama\); it is of another type of model"):
        load_model(tmp_path)


def test_a_tensor_more_in_a_shard_counts_whether_the_index_has_it_or_not(tmp_path: Path) -> None:
    hf = make_model("llama", n_layers=3).hf
    hf.save_pretrained(tmp_path, max_shard_size="2KB")
    assert_same(tmp_path, hf)
    part = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    whole = load_file(part)
    save_file(whole | {"model.layers.0.mlp.up_proj.bias": torch.ones(24)}, part)
    with pytest.raises(InputError, match=r"no place for the tensor model\.layers\.0\.mlp\.up_proj\.bias"):
        load_model(tmp_path)
    other = next(iter(load_file(sorted(tmp_path.glob("model-*.safetensors"))[0])))
    save_file(whole | {other: torch.ones(3)}, part)
    with pytest.raises(InputError, match=f"tensor {other} is in model-00001-of.*, too"):
        load_model(tmp_path)


# --- what is left over and harms nothing


def mask(length: int = 12, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    return torch.ones(1, 1, length, length).tril().to(dtype)


def frequencies(base: float = 10000.0) -> torch.Tensor:
    return base ** -(torch.arange(2) / 2)


HARMLESS: dict[str, tuple[str, Tensors]] = {
    "GPT-2's masks": (
        "gpt2",
        {"transformer.h.0.attn.bias": mask(), "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)},
    ),
    "GPT-2's masks as numbers": ("gpt2", {"transformer.h.0.attn.bias": mask(dtype=torch.float32)}),
    "GPT-NeoX's masks": (
        "gpt_neox",
        {
            "gpt_neox.layers.0.attention.bias": mask(dtype=torch.uint8),
            "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        },
    ),
    "frequencies": ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies()}),
    "rounded frequencies": ("mistral", {"model.rotary_emb.inv_freq": frequencies().bfloat16()}),
    "TRL's value head": ("gpt2", {"v_head.summary.weight": torch.ones(1, 8), "v_head.summary.bias": torch.ones(1)}),
    "another value head": ("qwen2", {"value_head.weight": torch.ones(1, 8)}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_computes_nothing_is_left_out(name: str, tmp_path: Path) -> None:
    family, extra = HARMLESS[name]
    assert_same(tmp_path, save(tmp_path, family, change=lambda tensors: tensors.update(extra)))


HARMFUL: dict[str, tuple[str, Tensors, str]] = {
    "a mask that is not causal": ("gpt2", {"transformer.h.0.attn.bias": mask() * 0}, "holds other values.*causal"),
    "a mask of another length": ("gpt2", {"transformer.h.0.attn.bias": mask(9)}, r"no place for .*h\.0\.attn\.bias"),
    "a mask of a layer more": ("gpt2", {"transformer.h.2.attn.bias": mask()}, r"no place for .*h\.2\.attn\.bias"),
    "a mask of another family": (
        "llama",
        {"model.layers.0.attn.bias": mask()},
        r"no place for .*layers\.0\.attn\.bias",
    ),
    "a masked bias that masks nothing": (
        "gpt_neox",
        {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(0.0)},
        "masked_bias holds other values",
    ),
    "other frequencies": (
        "llama",
        {"model.rotary_emb.inv_freq": frequencies(500.0)},
        "inv_freq holds other.*rope_theta",
    ),
    "more frequencies": ("llama", {"model.rotary_emb.inv_freq": torch.ones(4)}, "inv_freq holds other values"),
    "frequencies without rotation": ("gpt2", {"rotary_emb.inv_freq": frequencies()}, "no place for .*inv_freq"),
    "a wide value head": ("gpt2", {"v_head.weight": torch.ones(2, 8)}, r"no place for .*v_head\.weight"),
    "a classifier": ("llama", {"score.weight": torch.ones(2, 8)}, r"no place for .*score\.weight"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_of_a_known_kind_must_harm_nothing(name: str, tmp_path: Path) -> None:
    family, extra, message = HARMFUL[name]
    save(tmp_path, family, change=lambda tensors: tensors.update(extra))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


# --- tied or not


@pytest.mark.parametrize("family", VARIANTS)
def test_another_head_unties_a_model_that_calls_itself_tied(family: str, tmp_path: Path) -> None:
    hf = save(tmp_path, family, tied=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    assert_same(tmp_path, hf)
    model = load_model(tmp_path)
    assert (model.dense.tied, model.hf.config.tie_word_embeddings) == (False, False)
    assert "calls itself tied, but stores another unembedding" in model.notes[0]


@pytest.mark.parametrize(
    ("family", "stored"), diagonal(tuple(VARIANTS), ("both", "the head alone", "the embedding alone"))
)
def test_a_stored_head_that_equals_the_embedding_is_tied(family: str, stored: str, tmp_path: Path) -> None:
    def store(tensors: Tensors) -> None:
        embedding = next(name for name in tensors if tensors[name].shape == (37, 8))
        head = "embed_out.weight" if family == "gpt_neox" else "lm_head.weight"
        if stored != "the embedding alone":
            tensors[head] = tensors[embedding].clone()
        if stored == "the head alone":
            del tensors[embedding]

    hf = save(tmp_path, family, change=store)
    assert_same(tmp_path, hf)
    model = load_model(tmp_path)
    assert (model.dense.tied, model.hf.config.tie_word_embeddings, model.notes) == (True, True, ())


def test_a_head_of_another_length_is_refused(tmp_path: Path) -> None:
    save(tmp_path, change=add(lm_head__weight=torch.ones(38, 8)))
    with pytest.raises(InputError, match=r"lm_head\.weight is \(38, 8\), but config\.json makes it \(37, 8\)"):
        load_model(tmp_path)


def test_two_heads_are_one_too_many(tmp_path: Path) -> None:
    save(tmp_path, "gpt_neox", tied=False, change=lambda t: t.update({"lm_head.weight": t["embed_out.weight"] + 1}))
    with pytest.raises(InputError, match=r"no place for the tensor (lm_head|embed_out)\.weight"):
        load_model(tmp_path)


# --- other names

WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"_orig_mod.module.{name}",
    "both, the other way": lambda name: f"module._orig_mod.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "a module of Lightning": lambda name: f"model.{name}",
    "DeepSpeed in Lightning": lambda name: f"_forward_module.model.{name}",
    "compiled layers": lambda name: name.replace(".0.", ".0._orig_mod.").replace(".1.", ".1._orig_mod."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.1.', '.1._fsdp_wrapped_module.')}",
}


@pytest.mark.parametrize(
    ("wrapper", "family", "tied"), diagonal(tuple(WRAPPED), ("gpt2", "llama", "gpt_neox"), (True, False))
)
def test_names_of_a_wrapped_model_load(wrapper: str, family: str, tied: bool, tmp_path: Path) -> None:
    assert_same(tmp_path, save(tmp_path, family, tied=tied, change=rename(WRAPPED[wrapper])))


@pytest.mark.parametrize("family", VARIANTS)
def test_a_base_model_loads_within_a_wrapper_too(family: str, tmp_path: Path) -> None:
    base = f"{make_model(family).hf.base_model_prefix}."
    hf = save(tmp_path, family, change=rename(lambda name: f"_orig_mod.{name.removeprefix(base)}"))
    assert_same(tmp_path, hf)


def test_a_base_model_with_a_head_of_its_own_loads(tmp_path: Path) -> None:
    hf = save(tmp_path, "gpt2", tied=False, change=rename(lambda name: name.removeprefix("transformer.")))
    assert_same(tmp_path, hf)


def test_a_prefix_that_only_some_names_have_is_not_taken_off(tmp_path: Path) -> None:
    save(tmp_path, change=rename(lambda name: f"module.{name}" if "embed" not in name else name))
    with pytest.raises(
        InputError, match=r"lacks the tensor model\.layers\.0.*\(it has module\.model\.layers\.0.*wraps it"
    ):
        load_model(tmp_path)


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    name = "model.norm.weight"
    save(tmp_path, change=lambda tensors: tensors.update({f"_orig_mod.{name}": tensors[name] + 1}))
    with pytest.raises(InputError, match=f"tensors .*{name} and .*{name} are the same one"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "an adapter's, not merged; save what PEFT's"),
        ("model.layers.0.self_attn.q_proj.qweight", "the weights are quantized"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "the weights are quantized"),
        ("model.layers.0.self_attn.q_proj.scales", "the weights are quantized"),
    ],
)
def test_tensors_that_say_what_a_file_is(name: str, message: str, tmp_path: Path) -> None:
    save(tmp_path, change=lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("wrapper", ["both", "compiled layers", "PEFT"])
def test_a_device_map_needs_plain_names(wrapper: str, tmp_path: Path) -> None:
    spread: dict[str, int | str] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    spread |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    hf = save(tmp_path, tied=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    torch.testing.assert_close(load_model(tmp_path, device_map=spread).hf(IDS).logits, hf(IDS).logits)
    save(tmp_path, change=rename(WRAPPED[wrapper]))
    with pytest.raises(InputError, match="as of a wrapped one, and so a device map cannot spread it; load it without"):
        load_model(tmp_path, device_map=spread)


def test_every_tensor_of_the_families_has_its_place(tmp_path: Path) -> None:
    for family in FAMILIES:
        save(tmp_path / family, family)
        stored = read_headers([tmp_path / family / "model.safetensors"])
        places = load_model(tmp_path / family).hf.state_dict()
        assert len(stored) == len(places) - 1  # the tied one


def test_the_configuration_cannot_name_other_weights(tmp_path: Path) -> None:
    hf = save(tmp_path)
    other = {name: tensor + 1 for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(other, tmp_path / "other.safetensors", metadata={"format": "pt"})
    edit_config(tmp_path, transformers_weights="other.safetensors")
    assert_same(tmp_path, hf)
