"""The guard `in_scope` in the graph: what the file computes is what the reference computes, in every form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bundles import make_bundle, run_script, to_text
from exports import corrupt, reduced_cases, run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import ExactnessError, InputError
from exporter.graph.export import export_onnx
from exporter.graph.inputs import BATCH
from exporter.graph.options import GraphOptions
from exporter.graph.scope import read_scope
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope, measure_scope, read_residuals
from exporter.outputs.targets.runner import render_runner
from exporter.rewrite.surgery import plan_surgery, rewrite_model
from exporter.runtime.generate import generate_greedy
from exporter.runtime.session import open_session, run_guards, run_logits, run_step
from exporter.verify.exactness import verify_export, verify_surgery
from exporter.verify.precision import evaluate_file

CIRCUIT = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,), ablation=Ablation(by="global"))


def make_scope(model: CircuitModel, *, seed: int = 0, like: torch.Tensor | None = None) -> Scope:
    """Random directions, scaled so that half of the residuals `like`, (prompt, d_model), are in scope."""
    generator = torch.Generator().manual_seed(seed)
    scope = Scope(torch.randn(model.W_E.shape[1], 5, generator=generator), torch.randn(5, generator=generator))
    scale = 1.0 if like is None else float(scope.measure(like).median()) ** -0.5
    return replace(scope, directions=scope.directions * scale, shift=scope.shift * scale)


def refuse_after(model: CircuitModel, before: list[int], after: list[int]) -> Scope:
    """A scope that the prompt `before` is in, and `after` is out of."""
    first, second = (read_residuals(model, torch.tensor([ids]))[0] for ids in (before, after))
    direction = 2 * (second - first) / (second - first).square().sum()
    return Scope(direction[:, None], -(first @ direction)[None])


def export(folder: Path, scope: Scope | None = None, **options: object) -> tuple[Path, CircuitModel, Scope]:
    model = rewrite_model(make_model(), CIRCUIT, make_prompts(8, 6))
    scope = make_scope(model, like=read_residuals(model, make_prompts(20, 6).input_ids)) if scope is None else scope
    path = folder / "m.onnx"
    export_onnx(model, path, GraphOptions(**({"logits": "last"} | options | {"guard": True})), scope=scope)  # type: ignore[arg-type]
    return path, model, scope


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(8))
@given(data=st.data())
def test_the_file_says_what_the_reference_says(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case, options = data.draw(reduced_cases(family))
    model = rewrite_model(case.model, case.circuit, case.patching)
    ids, mask = case.prompts.input_ids, case.prompts.mask
    scope = make_scope(model, seed=data.draw(st.integers(0, 99)), like=read_residuals(model, ids, mask))
    path = tmp_path_factory.mktemp("scope") / "m.onnx"
    description = export_onnx(model, path, replace(options, guard=True), scope=scope)
    onnx.checker.check_model(str(path), full_check=True)
    found, expected = run_all(path, case.prompts), measure_scope(model, scope, ids, mask)
    assert list(found) == list(description.outputs)
    assert description.outputs["in_scope"] == description.outputs["scope_distance"] == [BATCH]
    torch.testing.assert_close(torch.from_numpy(found["scope_distance"]), expected, rtol=1e-3, atol=1e-3)
    clear = (expected - 1).abs() > 2e-3
    assert torch.equal(torch.from_numpy(found["in_scope"])[clear], (expected <= 1)[clear])
    kept = read_scope(path)
    assert kept is not None
    assert torch.equal(kept.directions, scope.directions)


def test_a_call_after_others_is_in_scope(tmp_path: Path) -> None:
    path, model, scope = export(tmp_path, form="past")
    session, ids = open_session(path, threads=1), make_prompts(20, 6).input_ids
    expected = (measure_scope(model, scope, ids) <= 1).tolist()
    assert 0 < sum(expected) < 20
    assert run_guards(session, ids.numpy())["in_scope"].tolist() == expected
    start, past = np.ones((20, 3), bool), {}
    _, past = run_step(session, ids[:, :3].numpy(), start, past, guards=())
    run_step(session, ids[:, 3:].numpy(), np.ones((20, 6), bool), past)  # raises if the guard says false


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_guard_computes_in_float32_in_other_precisions(precision: str, tmp_path: Path) -> None:
    path, model, scope = export(tmp_path, precision=precision)
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert weights["scope.directions"] == weights["scope.shift"] == onnx.TensorProto.FLOAT
    ids = make_prompts(20, 6).input_ids
    found = torch.from_numpy(run_guards(open_session(path, threads=1), ids.numpy())["scope_distance"])
    expected = measure_scope(model, scope, ids)
    assert float((found - expected).abs().median()) < 0.2


def test_a_stream_that_is_not_finite_is_out_of_scope(tmp_path: Path) -> None:
    model = rewrite_model(make_model(tied=False), CIRCUIT, make_prompts(8, 6))
    broken = model.W_E.detach().clone()
    broken[5] = torch.nan
    scope = Scope.blank(model.W_E.shape[1])
    export_onnx(model.replace(W_E=broken), tmp_path / "m.onnx", GraphOptions(guard=True), scope=scope)
    ids = torch.tensor([[1, 2, 3], [1, 2, 5]])
    assert run_guards(open_session(tmp_path / "m.onnx"), ids.numpy())["in_scope"].tolist() == [True, False]


def test_options_and_scope_go_together(tmp_path: Path) -> None:
    model = rewrite_model(make_model(), CIRCUIT, make_prompts(8, 6))
    with pytest.raises(InputError, match="go together"):
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(guard=True))
    with pytest.raises(InputError, match="go together"):
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(), scope=make_scope(model))
    with pytest.raises(InputError, match="9 dimensions, not 8"):
        scope = Scope(torch.zeros(9, 2), torch.zeros(2))
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(guard=True), scope=scope)
    with pytest.raises(InputError, match="guard"):
        GraphOptions(guard=1)  # type: ignore[arg-type]
    export_onnx(model, tmp_path / "m.onnx", GraphOptions())
    assert read_scope(tmp_path / "m.onnx") is None
    assert run_guards(open_session(tmp_path / "m.onnx"), make_prompts(2, 4).input_ids.numpy()) == {}


def test_prompts_out_of_scope_are_refused_but_measured(tmp_path: Path) -> None:
    """Generation refuses the prompt; the test set's evaluation counts it like any other."""
    path, model, scope = export(tmp_path)
    prompts, session = make_prompts(20, 6), open_session(path, threads=1)
    inside = measure_scope(model, scope, prompts.input_ids) <= 1
    row = int((~inside).nonzero()[0])
    with pytest.raises(InputError, match=r"none of its task.*in_scope is false.*without --guard"):
        generate_greedy(session, [prompts.input_ids[row].tolist()])
    generate_greedy(session, [prompts.input_ids[int(inside.nonzero()[0])].tolist()], max_new_tokens=1)
    assert evaluate_file(session, model, prompts).n == 20
    assert len(run_logits(session, prompts.input_ids.numpy())) == 20


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_what_is_generated_is_not_judged(form: str, tmp_path: Path) -> None:
    model = rewrite_model(make_model(), CIRCUIT, make_prompts(8, 6))
    prompt = [1, 2, 3]
    longer = [*prompt, int(model.next_token_logits(torch.tensor([prompt])).argmax())]
    path, _, scope = export(tmp_path, refuse_after(model, prompt, longer), form=form)
    assert (measure_scope(model, scope, torch.tensor([longer])) > 1).all()
    (found,) = generate_greedy(open_session(path, threads=1), [prompt], max_new_tokens=3)
    assert len(found.token_ids) == 3
    with pytest.raises(InputError, match="in_scope"):
        generate_greedy(open_session(path, threads=1), [longer])


def test_the_gate_sees_a_guard_that_computes_something_else(tmp_path: Path) -> None:
    dense = make_model()
    circuit, patching, prompts = CIRCUIT, make_prompts(8, 6), make_prompts(10, 6, seed=1)
    path, model, scope = export(tmp_path)
    sets = {"patching": patching, "prompts": prompts}
    surgery = plan_surgery(dense, circuit, patching)
    verify_surgery(dense, surgery, model, path, scope=scope, **sets)
    corrupt(path, "scope.shift", 1.0)
    verify_export(dense, circuit, model, path, **sets)  # logits are as they were
    with pytest.raises(ExactnessError, match="guard's distances differ"):
        verify_surgery(dense, surgery, model, path, scope=scope, **sets)


def test_run_py_asks_of_the_prompt_alone() -> None:
    script = render_runner("masked", longest=9, stop_ids=(0,), pinned=False, guards=("in_vocabulary", "in_scope"))
    assert 'if new is ids and not out["in_scope"].all(): sys.exit(' in script
    assert 'if not out["in_vocabulary"].all(): new is ids and sys.exit(' in script
    compile(script, "run.py", "exec")


@pytest.mark.parametrize("form", ["masked", "past"])
def test_run_py_refuses_a_prompt_and_goes_on_after_one(form: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form=form)  # type: ignore[arg-type]
    prompt = [3, 1, 4]
    longer = [*prompt, int(bundle.rewritten.next_token_logits(torch.tensor([prompt])).argmax())]
    scope = refuse_after(bundle.rewritten, prompt, longer)
    options = GraphOptions(form=form, logits="last", guard=True)  # type: ignore[arg-type]
    guarded = make_bundle(tmp_path / "g", graph=options, scope=scope)
    fine = run_script(guarded.folder, to_text(prompt))
    assert fine.returncode == 0, fine.stderr
    assert len(fine.stdout.split()) > len(longer)
    refused = run_script(guarded.folder, to_text(longer))
    assert refused.returncode == 1
    assert "none of its task" in refused.stderr
