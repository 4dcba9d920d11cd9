"""The spine of the project: hooked = rewritten = ONNX, for every circuit that can be drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exports import assert_same_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, Case, all_heads, cases, edits, hook_surgery, make_model, make_prompts, realign

from exporter.circuit import Ablation, Circuit
from exporter.graph import export as onnx_export
from exporter.graph.export import export_onnx
from exporter.graph.options import OPSETS, GraphOptions
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import FOLDS
from exporter.rewrite.surgery import Surgery, operate, plan_surgery, rewrite_model, slice_model
from exporter.runtime.session import open_session, read_form, run_in_steps, run_logits
from exporter.verify.exactness import verify_surgery
from exporter.verify.oracle import hooked_logits


def check_three_ways(case: Case, folder: Path, *, opset: int = 20) -> None:
    """Hooked, rewritten and exported model agree at every position but padding."""
    circuit, path, prompts = case.circuit, folder / "circuit.onnx", case.prompts
    ids, mask = prompts.input_ids, prompts.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    hooked = hooked_logits(case.model, hook_surgery(case.model, circuit, case.patching), ids, mask)[real]
    rewritten = rewrite_model(case.model, circuit, case.patching)
    logits = rewritten(ids, mask)
    assert_same_logits(logits[real], hooked)
    torch.testing.assert_close(rewritten.next_token_logits(ids, mask), logits[:, -1], rtol=1e-4, atol=1e-4)
    export_onnx(rewritten, path, GraphOptions(form="plain" if mask is None else "masked", opset=opset))
    onnx.checker.check_model(str(path), full_check=True)
    exported = run_logits(open_session(path, threads=1), ids.numpy(), None if mask is None else mask.numpy())
    assert exported.shape == logits.shape
    assert_same_logits(torch.from_numpy(exported)[real], hooked)


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(40))
@given(data=st.data())
def test_hooked_rewritten_and_onnx_agree(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case, opset = data.draw(cases(families=(family,))), data.draw(st.sampled_from(list(OPSETS)))
    check_three_ways(case, tmp_path_factory.mktemp("export"), opset=opset)


@settings(max_examples=examples(60))
@given(case=cases(padded=True))
def test_they_agree_on_prompts_of_several_lengths(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_three_ways(case, tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(15))
@given(data=st.data())
def test_a_model_with_past_agrees_in_one_call_and_token_by_token(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Uneven heads by layer, layers without attention, none at all, padding: whatever `cases` draws.

    Also with the inputs that Optimum makes, where every layer keeps as many heads.
    """
    case = data.draw(cases(families=(family,), padded=None))
    circuit = realign(case.circuit, "left")
    path, prompts = tmp_path_factory.mktemp("past") / "circuit.onnx", case.prompts
    ids, mask = prompts.input_ids, prompts.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    hooked = hooked_logits(case.model, hook_surgery(case.model, circuit, case.patching), ids, mask)[real]
    options = GraphOptions(
        form="past", optimum=data.draw(st.booleans()), opset=data.draw(st.sampled_from(list(OPSETS)))
    )
    description = export_onnx(rewrite_model(case.model, circuit, case.patching), path, options)
    onnx.checker.check_model(str(path), full_check=True)
    layers = sorted({head.layer for head in circuit.heads})
    assert len(description.outputs) == 1 + 2 * (max(1, len(layers)) if options.optimum else len(layers))
    assert len(description.inputs) == len(description.outputs) + (2 if options.optimum else 1)
    kept = {shape[1] for name, shape in description.inputs.items() if name.startswith("past_key_values.")}
    assert len(kept) == 1 or not options.optimum
    session, arrays = open_session(path, threads=1), (ids.numpy(), None if mask is None else mask.numpy())
    assert read_form(session) == "past"
    for logits in (run_logits(session, *arrays), run_in_steps(session, *arrays, single=data.draw(st.integers(0, 4)))):
        assert_same_logits(torch.from_numpy(logits)[real], hooked)


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(20))
@given(data=st.data())
def test_a_surgery_with_edits_agrees_after_it_was_saved(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any weights and shifts: in the hooked model, the rewritten one and the graph, and in none of them afterwards."""
    case, folder = data.draw(cases(families=(family,), padded=None)), tmp_path_factory.mktemp("surgery")
    changes = data.draw(edits(case.model, case.circuit, case.patching.length))
    surgery = replace(plan_surgery(case.model, case.circuit, case.patching), edits=changes)
    surgery.save(folder / "s.safetensors")
    loaded = Surgery.load(folder / "s.safetensors")
    assert (loaded.circuit, loaded.sha256) == (case.circuit, surgery.sha256)
    before = {name: tensor.clone() for name, tensor in case.model.hf.state_dict().items()}
    rewritten, path, mask = operate(case.model.dense, loaded), folder / "m.onnx", case.prompts.mask
    export_onnx(rewritten, path, GraphOptions(form="plain" if mask is None else "masked"))
    verify_surgery(case.model, loaded, rewritten, path, patching=case.patching, prompts=case.prompts)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.model.hf.state_dict().items())
    plain = hooked_logits(case.model, replace(loaded, edits={}), case.prompts.input_ids, mask)
    edited = hooked_logits(case.model, loaded, case.prompts.input_ids, mask)
    assert surgery.sha256 != replace(surgery, edits={}).sha256
    if any(name.endswith(".shift") for name in changes):  # what only weights change may be of no consequence
        assert not torch.equal(plain, edited)


@settings(max_examples=examples(30))
@given(case=cases())
def test_every_rewriting_pass_is_exact_alone(case: Case) -> None:
    dense, circuit = case.model.dense, case.circuit
    model = slice_model(dense, plan_surgery(dense, circuit, case.patching))
    expected = model(case.prompts.input_ids)
    for fold in FOLDS:
        assert_same_logits(fold(model)(case.prompts.input_ids), expected)  # alone, on the sliced model
    for fold in FOLDS:
        model = fold(model)
        assert_same_logits(model(case.prompts.input_ids), expected)  # and after those before it


@settings(max_examples=examples(40))
@given(case=cases())
def test_save_and_load_are_bit_exact(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("saved")
    rewritten = rewrite_model(case.model, case.circuit, case.patching)
    rewritten.save(folder)
    loaded = CircuitModel.load(folder)
    assert torch.equal(loaded(case.prompts.input_ids), rewritten(case.prompts.input_ids))
    assert loaded.state_dict().keys() == rewritten.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in rewritten.state_dict().items())
    assert (loaded.length, loaded.tied) == (rewritten.length, rewritten.tied)
    export_onnx(rewritten, folder / "a.onnx")
    export_onnx(loaded, folder / "b.onnx")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


@settings(max_examples=examples(30))
@given(case=cases())
def test_the_dense_model_is_not_changed(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.model.hf.state_dict().items()}
    logits = case.model.dense(case.prompts.input_ids)
    rewrite_model(case.model, case.circuit, case.patching)
    assert torch.equal(case.model.dense(case.prompts.input_ids), logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.model.hf.state_dict().items())


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_free_length_takes_every_length_and_no_more(ablation: str, tmp_path: Path) -> None:
    model = make_model(positions=9)
    circuit = Circuit(heads=all_heads(model)[1:], mlps=(1,), ablation=Ablation(ablation, by="global"))
    rewritten = rewrite_model(model, circuit, make_prompts(8, 5))
    description = export_onnx(rewritten, tmp_path / "m.onnx")
    assert description.inputs == {"input_ids": ["batch_size", "sequence_length"]}
    session = open_session(tmp_path / "m.onnx")
    for length in range(1, 10):
        ids = make_prompts(3, length).input_ids
        np.testing.assert_allclose(run_logits(session, ids.numpy()), rewritten(ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match=r"[Ii]nvalid|broadcast|shape"):
        run_logits(session, make_prompts(1, 10).input_ids.numpy())


def test_fixed_length_refuses_other_lengths(tmp_path: Path) -> None:
    model = make_model()
    rewritten = rewrite_model(model, Circuit(heads=(), mlps=(0,)), make_prompts(8, 5))
    assert export_onnx(rewritten, tmp_path / "m.onnx").outputs == {"logits": ["batch_size", 5, 37]}
    with pytest.raises(Exception, match=r"made for prompts of 5 tokens, not 6"):
        rewritten(make_prompts(2, 6).input_ids)
    with pytest.raises(Exception, match="invalid dimensions"):
        run_logits(open_session(tmp_path / "m.onnx"), make_prompts(2, 6).input_ids.numpy())


def test_tied_embedding_is_written_once(tmp_path: Path) -> None:
    model = make_model()
    circuit = Circuit(heads=(), mlps=())
    export_onnx(rewrite_model(model, circuit, make_prompts(8, 5)), tmp_path / "m.onnx")
    shapes = [tuple(tensor.dims) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert shapes.count((37, 8)) == 1


def test_a_model_beyond_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", 100)
    with pytest.raises(Exception, match="one ONNX file holds 2 GB"):
        export_onnx(make_model().dense, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
