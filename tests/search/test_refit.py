"""Refits in closed form against the dense model and numpy; removal with repair against every support."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exports import assert_same_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gradual import draw_circuit
from tiers import examples
from tiny import VARIANTS, ablations, make_model, make_prompts, models

from exporter.circuit import Ablation, Circuit, Learning
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import operate
from exporter.search.find import search_surgery
from exporter.search.gates import finest_sites
from exporter.search.healing import Healer, answer, kl_from_dense
from exporter.search.lessons import ask_dense
from exporter.search.moments import Moments, take_slopes
from exporter.search.refit import Mender, refit
from exporter.search.removal import remove_units, score_repaired
from exporter.search.rules import Budget
from exporter.search.state import State, cut_state, find_whole, make_surgery, start_state
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import hooked_logits


def cut(dense: CircuitModel, circuit: Circuit, prompts: Dataset) -> State:
    """A dense model cut to a circuit, with its own means."""
    layers = {sublayer.layer for sublayer in dense.sublayers()}
    means = compute_replacements(dense, prompts, ablation=circuit.ablation, neurons=layers)
    return cut_state(start_state(dense, circuit.ablation, prompts.length), circuit, means)


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(20))
@given(data=st.data(), padded=st.booleans(), steps=st.integers(1, 2), ablation=ablations())
def test_a_refitted_network_is_its_surgery(
    family: str, data: st.DataObject, padded: bool, steps: int, ablation: Ablation
) -> None:
    """Cut and refitted twice, it gives the logits of the Hugging Face model with hooks and edits, and rewritten."""
    model = data.draw(models((family,)))
    prompts = make_prompts(12, 5, seed=1, padded=padded, steps=steps)
    layers = {sublayer.layer for sublayer in model.dense.sublayers()}
    dense_tables = compute_replacements(model.dense, prompts, ablation=ablation, neurons=layers)
    aside = make_prompts(6, 5, seed=2, steps=steps) if data.draw(st.booleans()) else None
    state = start_state(model.dense, ablation, prompts.length)
    for _ in range(2):
        means = compute_replacements(state.model, prompts, ablation=ablation, neurons=layers)
        state = cut_state(state, draw_circuit(data, state), means)
        refit(state.model, model.dense, prompts, aside)
    surgery = make_surgery(model.dense, state, dense_tables)
    ids, mask = prompts.input_ids, prompts.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    ours = state.model(ids, mask)[real]
    assert_same_logits(operate(model.dense, surgery)(ids, mask)[real], ours)
    assert_same_logits(hooked_logits(model, surgery, ids, mask)[real], ours)


@settings(max_examples=examples(40))
@given(model=models(), padded=st.booleans(), ablation=ablations(), held=st.booleans())
def test_where_nothing_is_removed_nothing_changes(
    model: LanguageModel, padded: bool, ablation: Ablation, held: bool
) -> None:
    prompts = make_prompts(12, 5, seed=1, padded=padded)
    state = cut(model.dense, find_whole(model.dense, ablation), prompts)
    before = state.model.answer_logits(prompts.input_ids, prompts.mask)
    assert_same_logits(before, model.dense.answer_logits(prompts.input_ids, prompts.mask))
    refit(state.model, model.dense, prompts, make_prompts(6, 5, seed=2) if held else None)
    assert_same_logits(state.model.answer_logits(prompts.input_ids, prompts.mask), before)


def test_what_is_redundant_is_recovered_exactly() -> None:
    """Hidden unit 2 of a gated MLP is 2 * unit 0 - unit 1, whatever is read, and is removed."""
    model = make_model("llama", n_layers=2, n_heads=2, d_mlp=12, seed=4)
    mlp = next(s for s in model.dense.sublayers() if s.name == "m0")
    tensors = mlp.tensors
    W_in, W_gate = tensors["W_in"], tensors["W_gate"]
    assert W_in is not None and W_gate is not None
    with torch.no_grad():
        W_gate[:, 1] = W_gate[:, 2] = W_gate[:, 0]
        W_in[:, 2] = 2 * W_in[:, 0] - W_in[:, 1]
    prompts, others = make_prompts(40, 6, seed=1), make_prompts(20, 6, seed=2)
    circuit = Circuit([(layer, head) for layer in (0, 1) for head in (0, 1)], [1], neurons={0: (0, 1, *range(3, 12))})
    state = cut(model.dense, circuit, prompts)
    expected = model.dense.answer_logits(others.input_ids)
    assert float((state.model.answer_logits(others.input_ids) - expected).abs().max()) > 0.1
    refit(state.model, model.dense, prompts, make_prompts(20, 6, seed=3))
    assert float((state.model.answer_logits(others.input_ids) - expected).abs().max()) < 2e-3


def test_constants_alone_are_means_of_what_is_lacking() -> None:
    """Of a network without any unit, the constants give the dense model's mean residual, at each position."""
    model, prompts = make_model(n_layers=2), make_prompts(30, 5, seed=1)
    state = cut(model.dense, Circuit([], []), prompts)
    refit(state.model, model.dense, prompts)
    at = model.dense.place(prompts.input_ids)
    x = z = model.dense.embed(prompts.input_ids, at)
    for step in model.dense.steps:
        x = step(x, at)
    assert [len(step.sublayers) for step in state.model.steps] == [0]
    z = state.model.steps[0](z, at)
    torch.testing.assert_close(z[:, -1].mean(0), x[:, -1].mean(0), rtol=1e-4, atol=1e-4)


def make_moments(seed: int, n_rows: int) -> tuple[Moments, dict[str, np.ndarray[Any, Any]]]:
    """Random moments, and what they are of."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(7, 6, k, generator=generator) for k in (4, 3))
    weights = torch.rand(7, 6, generator=generator) * (torch.rand(7, 6, generator=generator) > 0.2)
    rows = torch.arange(6)[None] % n_rows
    moments = Moments(n_rows, 4, 3)
    for part in (slice(0, 3), slice(3, 7)):
        moments.add(x[part], y[part], rows, weights[part])
    flat = {"x": x.flatten(0, 1), "y": y.flatten(0, 1), "w": weights.flatten(), "rows": rows.expand(7, 6).flatten()}
    return moments, {name: tensor.numpy().astype(np.float64) for name, tensor in flat.items()}


@pytest.mark.parametrize("n_rows", [1, 3])
def test_moments_give_the_regression_of_numpy(n_rows: int) -> None:
    """Weighted least squares with an intercept for each row."""
    moments, given_ = make_moments(1, n_rows)
    C_xx, C_xy = moments.centre()
    W = torch.linalg.solve(C_xx, C_xy)
    root = np.sqrt(given_["w"])[:, None]
    design = np.concatenate([given_["x"], given_["rows"][:, None] == np.arange(n_rows)], axis=1)
    expected, *_ = np.linalg.lstsq(root * design, root * given_["y"], rcond=None)
    np.testing.assert_allclose(W, expected[:4], atol=1e-8)
    np.testing.assert_allclose(moments.find_constant(W), expected[4:], atol=1e-8)
    error = np.square(root * (given_["y"] - design @ expected)).sum()
    assert moments.error(W, moments.find_constant(W)) == pytest.approx(error)
    assert moments.error(W + 0.1, moments.find_constant(W)) > error


@settings(max_examples=examples(20))
@given(data=st.data(), model=models())
def test_a_refit_never_raises_the_error_of_the_residual(data: st.DataObject, model: LanguageModel) -> None:
    """Of the last step, where all that is before is as it was: its constant and projections are solved last."""
    prompts = make_prompts(24, 5, seed=1)
    whole = find_whole(model.dense, Ablation())
    last = max(sublayer.layer for sublayer in model.dense.sublayers())
    site = next(s.sites[-1] for s in model.dense.sublayers() if s.layer == last and s.sites[-1].kind == "neurons")
    kept = tuple(unit for unit in site.units if data.draw(st.booleans())) or site.units[:1]
    circuit = Circuit(whole.heads, [layer for layer in whole.mlps if layer != last], neurons={last: kept})
    state = cut(model.dense, circuit, prompts)

    def error() -> float:
        at = model.dense.place(prompts.input_ids)
        x = y = model.dense.embed(prompts.input_ids, at)
        for step in model.dense.steps:
            x = step(x, at)
        for step in state.model.steps:
            y = step(y, at)
        return float((x - y)[:, -1].double().square().sum())

    before = error()
    refit(state.model, model.dense, prompts)
    assert error() <= before * (1 + 1e-4) + 1e-6


def test_a_refit_that_is_further_from_the_teacher_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = make_model(n_layers=2), make_prompts(32, 5, seed=1)
    lessons = ask_dense(model.dense, prompts)
    state = cut(model.dense, Circuit([(0, 1)], [1]), prompts)
    mender = Mender(Healer(lessons, lessons), model.dense, refits=True, trains=False)
    before = float(kl_from_dense(lessons, answer(state.model, prompts)))
    assert mender.heal(state.model, steps=9, seed=0) == 0
    after = float(kl_from_dense(lessons, answer(state.model, prompts)))
    assert after < before

    def spoil(model: CircuitModel, *_: object, **__: object) -> None:
        for parameter in model.parameters():
            parameter += 1.0

    monkeypatch.setattr("exporter.search.refit.refit", spoil)
    mender.heal(state.model, steps=9, seed=0)
    assert float(kl_from_dense(lessons, answer(state.model, prompts))) == after


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 1000), size=st.sampled_from([1, 2, 3]), m=st.integers(1, 4))
def test_removal_is_least_squares_on_each_support(seed: int, size: int, m: int) -> None:
    """The first unit is the best of all, and each error that of numpy's refit, over all output columns."""
    rng = np.random.default_rng(seed)
    k = size * 6
    x = rng.normal(size=(60, k)) @ rng.normal(size=(k, k))
    W = rng.normal(size=(k, m))
    found = remove_units(torch.tensor(x.T @ x), torch.tensor(W), size)
    assert sorted(found.order.tolist()) == list(range(6))

    def refit_without(gone: list[int]) -> float:
        rows = [row for row in range(k) if row // size not in gone]
        fitted = x[:, rows] @ np.linalg.lstsq(x[:, rows], x @ W, rcond=None)[0] if rows else 0.0
        return float(np.square(x @ W - fitted).sum())

    order = found.order.tolist()
    for n, error in enumerate(found.errors.tolist(), start=1):
        assert error == pytest.approx(refit_without(order[:n]), rel=1e-5, abs=1e-6)
        best = min(refit_without([*order[: n - 1], unit]) for unit in range(6) if unit not in order[: n - 1])
        assert error == pytest.approx(best, rel=1e-5, abs=1e-6)
    assert found.worth[found.order].tolist() == sorted(found.worth.tolist())


def test_all_output_columns_count() -> None:
    """By the first column alone, unit 0 would go first; the other columns need it."""
    W = torch.tensor([[0.1, 9.0], [1.0, 0.0]], dtype=torch.float64)
    assert remove_units(torch.eye(2, dtype=torch.float64), W, 1).order.tolist() == [1, 0]


def test_scores_with_repair_know_what_is_redundant() -> None:
    """A hidden unit that is another one's double can be made up for, and one without a double cannot."""
    model, prompts = make_model(n_layers=1, n_heads=2, d_mlp=4, seed=2), make_prompts(64, 5, seed=1)
    with torch.no_grad():
        mlp = list(model.dense.sublayers())[1]
        for name in ("W_in", "b_in"):
            tensor = mlp.tensors[name]
            assert tensor is not None
            tensor[..., 1] = tensor[..., 0]
    lessons = ask_dense(model.dense, prompts)
    tokens = lessons.draw_tokens(torch.Generator().manual_seed(0))
    scores = score_repaired(model.dense, [(prompts, tokens)])
    assert {name: len(worth) for name, worth in scores.items()} == dict(finest_sites(model.dense))
    worth = scores["neurons.0"]
    assert int(worth.argmin()) in (0, 1)
    assert float(worth.min()) < 0.5 * float(worth[2:].min())


def test_slopes_are_gradients_at_the_residual() -> None:
    model, prompts = make_model(n_layers=2), make_prompts(3, 5, seed=1)
    tokens = torch.tensor([[1], [2], [3]])
    slopes = take_slopes(model.dense, prompts, tokens)
    assert [tuple(slope.shape) for slope in slopes] == [(3, 5, 8), (3, 5, 8), (3, 1, 8), (3, 1, 8)]
    at = model.dense.place(prompts.input_ids)
    x = model.dense.embed(prompts.input_ids, at)
    for step in model.dense.steps:
        x = step(x, at)
    bump, likelihood = 1e-2 * torch.eye(8)[2], []
    for sign in (1, -1):
        log_p = model.dense.unembed(x[:, -1:] + sign * bump).double().log_softmax(-1)
        likelihood.append(log_p.gather(-1, tokens[..., None])[:, 0, 0])
    torch.testing.assert_close(
        (likelihood[0] - likelihood[1]).float() / 2e-2, slopes[-1][:, 0, 2], rtol=0.02, atol=1e-3
    )


def test_a_search_that_refits() -> None:
    model = make_model(n_layers=3, n_heads=4, d_mlp=32)
    sets = make_prompts(100, 6, seed=1), make_prompts(20, 6, seed=2)
    surgery, record = search_surgery(model, *sets, rule=Budget(max_params="20%"), heal="refit")
    assert surgery.edits
    assert record.learning == Learning("refit", "dense", 90, 0)
    assert record.weights == "refitted in closed form, not the original's: to dense on 90 prompts"
    assert all(step.kl <= step.kl_cut for step in record.path[-1:])
    again, _ = search_surgery(model, *sets, rule=Budget(max_params="20%"), heal="refit")
    assert again.sha256 == surgery.sha256
