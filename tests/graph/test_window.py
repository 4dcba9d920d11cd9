"""Sliding windows: full attention is exact up to the window, in transformers' own model too, and refused beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, hook_surgery, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.graph.export import export_onnx
from exporter.loading.families.family import read_max_length
from exporter.loading.load import load_model
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session
from exporter.runtime.session import read_max_length as read_stored_length
from exporter.verify.oracle import hooked_logits

WINDOW = 5
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "qwen2, upper layers": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "mistral, types that are not read": {"sliding_window": WINDOW, "layer_types": ["full_attention"] * 2},
}


def attend_fully(hf: Any, family: str) -> Any:
    full = make_model(family, positions=16, **({} if family == "mistral" else {"sliding_window": None})).hf
    full.load_state_dict(hf.state_dict())
    return full


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_is_exact_up_to_its_length_and_not_beyond(name: str, tmp_path: Path) -> None:
    family = name.split(",")[0]
    make_model(family, positions=16, **WINDOWED[name]).hf.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.dense.max_length == WINDOW
    full = attend_fully(model.hf, family)
    ids = make_prompts(4, WINDOW + 1).input_ids
    for length in range(1, WINDOW + 1):
        torch.testing.assert_close(model.dense(ids[:, :length]), model.hf(ids[:, :length]).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(full(ids[:, :length]).logits, model.hf(ids[:, :length]).logits)
    beyond = model.hf(ids).logits[:, -1] - full(ids).logits[:, -1]
    assert beyond.abs().max() > 1e-3  # so the next length is rightly refused
    with pytest.raises(InputError, match=f"prompts of {WINDOW + 1} tokens are longer than the model's {WINDOW}"):
        model.dense(ids)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", range(1, WINDOW + 1))
def test_hooked_rewritten_and_exported_agree_within_the_window(length: int, padded: bool, tmp_path: Path) -> None:
    make_model("starcoder2", positions=16, **WINDOWED["starcoder2"]).hf.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    circuit = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,), ablation=Ablation(by="global"))
    prompts = make_prompts(4, length, padded=padded)
    patching = make_prompts(9, WINDOW, seed=1)
    rewritten = rewrite_model(model, circuit, patching)
    hooked = hooked_logits(model, hook_surgery(model, circuit, patching), prompts.input_ids, prompts.mask)
    found = rewritten(prompts.input_ids, prompts.mask)
    real = prompts.mask if prompts.mask is not None else torch.ones_like(prompts.input_ids, dtype=torch.bool)
    torch.testing.assert_close(found[real], hooked[real], rtol=1e-4, atol=1e-5)
    assert rewritten.max_length == WINDOW


def test_the_exported_file_knows_its_longest_prompt(tmp_path: Path) -> None:
    make_model("mistral", positions=16, **WINDOWED["mistral"]).hf.save_pretrained(tmp_path)
    export_onnx(load_model(tmp_path).dense, tmp_path / "m.onnx")
    assert read_stored_length(open_session(tmp_path / "m.onnx")) == WINDOW


@pytest.mark.parametrize(
    ("family", "fields", "longest"),
    [
        ("mistral", {"sliding_window": None}, 16),
        ("mistral", {"sliding_window": 4096}, 16),
        ("mistral", {"sliding_window": 16}, 16),
        ("mistral", {"sliding_window": 15}, 15),
        ("mistral", {"sliding_window": 1}, 1),
        ("starcoder2", {"sliding_window": 4096}, 16),
        ("qwen2", {"sliding_window": 5}, 16),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": False, "max_window_layers": 0}, 16),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}, 16),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 28}, 16),
        ("qwen2", {"sliding_window": 0, "use_sliding_window": False}, 16),
        ("qwen3", {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, 16),
        ("qwen3", {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 5),
        ("llama", {"sliding_window": 5}, 5),  # transformers' Llama does not look at it: exact either way
        ("gpt2", {"sliding_window": 5}, 5),
        ("gpt_neox", {"sliding_window": 5}, 5),
        ("mistral", {"sliding_window": 12, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 12),
    ],
)
def test_the_longest_prompt(family: str, fields: dict[str, Any], longest: int) -> None:
    model = make_model(family, positions=16, **fields)
    assert read_max_length(model.hf.config) == longest == model.dense.max_length
    ids = torch.arange(longest)[None] % VOCAB
    torch.testing.assert_close(model.dense(ids), model.hf(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; it must be an integer from 1, or null for full"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
        ("mistral", {"sliding_window": 10**40}, "sliding_window"),
        ("mistral", {"sliding_window": "4096"}, "sliding_window"),
        ("starcoder2", {"sliding_window": 4.0}, "sliding_window"),
        ("starcoder2", {"sliding_window": True}, "sliding_window"),
        ("starcoder2", {"sliding_window": 0}, "sliding_window is 0"),
        ("llama", {"sliding_window": -4}, "sliding_window is -4"),
        ("qwen2", {"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 0}, "sliding_window"),
        (
            "qwen2",
            {"sliding_window": 5, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
            "layer_types names sliding_attention, but there is no sliding_window",
        ),
        (
            "qwen3",
            {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["chunked_attention"] * 2},
            "layers of type 'chunked_attention'; known: full_attention, sliding_attention",
        ),
    ],
)
def test_windows_that_are_none_are_refused(family: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    import json

    make_model(family, positions=16).hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_types": None, **fields}))
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path)
    assert caught.value.exit_code == 3
