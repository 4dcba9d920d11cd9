"""The oracle: what a hook overwrites, and that it is gone afterwards."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tiny import all_heads, hook_surgery, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.rewrite.replacements import compute_replacements
from exporter.verify import oracle
from exporter.verify.oracle import ablated, hf_inputs, hooked_logits, record_replacements


def test_a_full_circuit_is_the_dense_model() -> None:
    model, prompts = make_model(), make_prompts(4, 5)
    full = Circuit(heads=all_heads(model), mlps=(0, 1))
    logits = hooked_logits(model, hook_surgery(model, full, prompts), prompts.input_ids)
    assert torch.equal(logits, model.hf(prompts.input_ids).logits)


def test_hooks_are_gone_after_an_exception() -> None:
    model, prompts = make_model(), make_prompts(4, 5)
    before = model.hf(prompts.input_ids).logits
    surgery = hook_surgery(model, Circuit(heads=(), mlps=(), ablation="zero"), prompts)

    def fail_inside() -> None:
        with ablated(model, surgery):
            assert not torch.equal(model.hf(prompts.input_ids).logits, before)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert torch.equal(model.hf(prompts.input_ids).logits, before)


def test_the_output_bias_stays_when_every_head_is_gone() -> None:
    """With all heads and MLPs zeroed, what is left is embedding + position + the sum of b_O."""
    model, prompts = make_model(), make_prompts(4, 5)
    body = model.hf.transformer
    surgery = hook_surgery(model, Circuit(heads=(), mlps=(), ablation="zero"), prompts)
    logits = hooked_logits(model, surgery, prompts.input_ids)
    residual = body.wte(prompts.input_ids) + body.wpe(torch.arange(5)) + sum(b.attn.c_proj.bias for b in body.h)
    torch.testing.assert_close(logits, model.hf.lm_head(body.ln_f(residual)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("align", ["left", "right"])
@pytest.mark.parametrize("mean", ["position", "global"])
def test_recorded_means_are_those_of_the_circuit_model(mean: str, align: str, padded: bool) -> None:
    model, prompts = make_model(n_layers=3), make_prompts(70, 5, padded=padded)
    ablation, neurons = Ablation(by=mean, align=align), (0, 2)
    recorded = record_replacements(model, prompts, ablation=ablation, neurons=neurons)
    computed = compute_replacements(model.dense, prompts, ablation=ablation, neurons=neurons)
    assert computed.tables.keys() == recorded.tables.keys()
    assert len(computed.tables) == 3 + 3 + 2
    for name, ours in computed.tables.items():
        theirs = recorded.tables[name]
        assert ours.shape[0] == (5 if mean == "position" else 1)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_recording_holds_one_sum_however_many_prompts_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum for each chunk would take 17 GB on 6,000 prompts of a model of 30 layers."""
    model, held = make_model(n_layers=3), []

    def count(*arguments: Any) -> dict[str, Any]:
        held.append(sum(t.dtype == torch.float64 for t in gc.get_objects() if isinstance(t, torch.Tensor)))
        return hf_inputs(*arguments)

    monkeypatch.setattr(oracle, "hf_inputs", count)
    monkeypatch.setattr(oracle, "CHUNK", 2)
    record_replacements(model, make_prompts(12, 5), ablation=Ablation(), neurons=(0, 1, 2))
    assert len(held) == 6 and held[1] >= held[0] + 9
    assert held[1] == held[-1]


def test_a_mean_by_hand() -> None:
    """z of the only prompt is its own mean; of two prompts, the half of the sum."""
    model, prompts = make_model(n_layers=1), make_prompts(2, 4)
    attention = next(iter(model.dense.sublayers()))
    at = model.dense.place(prompts.input_ids)
    z = attention.z(model.dense.embed(prompts.input_ids, at), at).double()
    by_position = compute_replacements(model.dense, prompts, ablation=Ablation()).tables["heads.0"]
    torch.testing.assert_close(by_position, (z[0] + z[1]) / 2)
    everywhere = compute_replacements(model.dense, prompts, ablation=Ablation(by="global")).tables["heads.0"]
    torch.testing.assert_close(everywhere[0], z.sum((0, 1)) / 8)
    assert not compute_replacements(model.dense, prompts, ablation=Ablation("zero")).tables["heads.0"].any()


def test_one_head_is_overwritten_by_its_mean_alone() -> None:
    model, prompts = make_model(n_layers=1), make_prompts(6, 4)
    without = Circuit(heads=(Head(0, 1),), mlps=(0,))
    seen = []
    surgery = hook_surgery(model, without, prompts)
    with ablated(model, surgery):
        handle = model.hf.transformer.h[0].attn.c_proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
        model.hf(prompts.input_ids)
        handle.remove()
    z = seen[0].unflatten(-1, (2, 4))
    torch.testing.assert_close(z[:, :, 0], surgery.replacements.tables["heads.0"][:, 0].float().expand(6, 4, 4))
    attention, at = next(iter(model.dense.sublayers())), model.dense.place(prompts.input_ids)
    torch.testing.assert_close(z[:, :, 1], attention.z(model.dense.embed(prompts.input_ids, at), at)[:, :, 1])
