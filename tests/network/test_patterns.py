"""Attention patterns are those of the Hugging Face model, of the heads that a circuit keeps."""

from __future__ import annotations

import pytest
import torch
from tiers import thin
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.network.patterns import read_patterns
from exporter.rewrite.surgery import rewrite_model


@pytest.mark.parametrize("family", thin(VARIANTS, ("gpt2", "llama", "gpt_neox")))
def test_they_are_those_of_the_original(family: str) -> None:
    shape = {"num_key_value_heads": 2} if family in ("llama", "qwen2", "qwen3", "mistral", "starcoder2") else {}
    model = make_model(family, n_layers=2, n_heads=4, **shape)
    ids = make_prompts(1, 6).input_ids
    expected = model.hf(ids, output_attentions=True).attentions  # (1, head, query, key) for each layer
    for pattern in read_patterns(model.dense, ids):
        torch.testing.assert_close(pattern.weights, expected[pattern.head.layer][0, pattern.head.index])
        assert pattern.written > 0


def test_of_a_rewritten_circuit_only_the_heads_that_stay() -> None:
    model, patching = make_model(n_layers=2, n_heads=4), make_prompts(8, 6)
    kept = (Head(0, 2), Head(1, 0), Head(1, 3))
    circuit = Circuit(heads=kept, mlps=(0, 1), ablation=Ablation(by="global"))
    ids = make_prompts(1, 6, seed=3).input_ids
    found = read_patterns(rewrite_model(model, circuit, patching), ids)
    assert tuple(pattern.head for pattern in found) == kept
    dense = {pattern.head: pattern for pattern in read_patterns(model.dense, ids)}
    first = found[0]  # nothing before the first layer differs, and the folds change no weight
    torch.testing.assert_close(first.weights, dense[first.head].weights)
    one = model.dense.steps[0].sublayers[0]
    x, at = model.dense.embed(ids, model.dense.place(ids)), model.dense.place(ids)
    rows = one.W_O.unflatten(0, (4, -1))[2]
    assert dense[first.head].written == pytest.approx(float((one.z(x, at)[0, :, 2] @ rows).norm(dim=-1).mean()))
