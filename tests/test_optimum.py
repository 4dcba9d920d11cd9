"""Optimum loads what is exported (the environment of the extra `optimum`; see `make test-optimum`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import make_model, make_prompts

from exporter.circuit import Circuit, Head
from exporter.onnx_export import export_onnx
from exporter.rewrite import rewrite_model

ort_models = pytest.importorskip("optimum.onnxruntime", reason="needs the extra 'optimum' and transformers 4.57")


@pytest.mark.parametrize("mean", ["position", "global"])
def test_it_loads_and_computes_the_same(mean: str, tmp_path: Path) -> None:
    model = make_model(positions=32)
    rewritten = rewrite_model(model, Circuit(heads=(Head(0, 1),), mlps=(1,), mean=mean), make_prompts(8, 5))
    export_onnx(rewritten, tmp_path / "model.onnx")
    model.hf.config.save_pretrained(tmp_path)
    loaded = ort_models.ORTModelForCausalLM.from_pretrained(tmp_path, use_cache=False, use_io_binding=False)
    prompts = make_prompts(3, 5, seed=4).input_ids
    logits = loaded(input_ids=prompts, attention_mask=torch.ones_like(prompts)).logits
    torch.testing.assert_close(logits, rewritten(prompts), rtol=1e-4, atol=1e-4)


def test_it_generates_the_same_tokens(tmp_path: Path) -> None:
    model = make_model(positions=32)
    circuit = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,), mean="global")
    rewritten = rewrite_model(model, circuit, make_prompts(8, 5))
    export_onnx(rewritten, tmp_path / "model.onnx")
    model.hf.config.save_pretrained(tmp_path)
    loaded = ort_models.ORTModelForCausalLM.from_pretrained(tmp_path, use_cache=False, use_io_binding=False)
    ids = make_prompts(1, 5, seed=4).input_ids
    found = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False
    )
    for _ in range(6):
        ids = torch.cat([ids, rewritten.next_token_logits(ids).argmax(-1, keepdim=True)], dim=1)
    assert found.tolist() == ids.tolist()
