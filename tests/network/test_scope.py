"""The scope: what is fitted, what the limit is, and what happens where there is little to fit on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import VOCAB, make_model, make_prompts
from torch import Tensor

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.network.model import CircuitModel
from exporter.network.scope import N_DIRECTIONS, Scope, fit_scope, measure_scope, take_prompts
from exporter.rewrite.surgery import rewrite_model
from exporter.tasks.dataset import Dataset

LAST = (3, 11, 20)  # tokens that the task's prompts end in


def make_circuit() -> CircuitModel:
    circuit = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,), ablation=Ablation(by="global"))
    return rewrite_model(make_model(d_head=8), circuit, make_prompts(8, 6))


def make_task(n: int, seed: int, *, padded: bool = False) -> Dataset:
    """Prompts whose last two tokens are of three."""
    prompts = make_prompts(n, 6, seed=seed, padded=padded)
    prompts.input_ids[:, -2:] = torch.tensor(LAST)[prompts.input_ids[:, -2:] % 3]
    return prompts


def measure(model: CircuitModel, scope: Scope, prompts: Dataset) -> Tensor:
    return measure_scope(model, scope, prompts.input_ids, prompts.mask)


def test_the_distance_by_hand() -> None:
    scope = Scope(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([-2.0, 0.0]))
    distances = scope.measure(torch.tensor([[1.0, 0.0, 9.0], [1.5, 0.0, 0.0], [1.0, 2.0, 0.0], [torch.nan, 0.0, 0.0]]))
    assert distances[:3].tolist() == [0.0, 1.0, 4.0]
    assert distances[3].isnan() and not distances[3] <= 1


@pytest.mark.parametrize("padded", [False, True])
def test_prompts_of_the_task_are_in_scope_and_others_out(padded: bool) -> None:
    model = make_circuit()
    scope = fit_scope(model, make_task(150, 1, padded=padded), make_task(150, 2, padded=padded))
    assert (scope.n_fitted, scope.alarms) == (150, 0.01)
    own = measure(model, scope, make_task(300, 3))
    assert (own <= 1).double().mean() >= 0.96
    others = make_prompts(300, 6, seed=4)
    of_task = torch.isin(others.input_ids[:, -2:], torch.tensor(LAST)).all(dim=1)
    far = measure(model, scope, others)[~of_task]
    assert (far[:, None] > own).double().mean() >= 0.9  # the area under the ROC curve
    assert (far > 1).double().mean() >= 0.3


@pytest.mark.parametrize(("n", "alarms", "beyond"), [(50, 1 / 51, 0), (99, 0.01, 0), (200, 0.01, 1)])
def test_the_limit_is_the_conformal_quantile_of_the_prompts_aside(n: int, alarms: float, beyond: int) -> None:
    """ceil((n + 1) 0.99) is 51, 99 and 199: with 50 prompts there is no such one, and the largest distance is taken."""
    distances = torch.arange(1, n + 1).double()
    scope = Scope(torch.eye(2), torch.zeros(2)).widen(distances[torch.randperm(n)])
    assert scope.alarms == pytest.approx(alarms)
    x = torch.stack([distances.sqrt().float(), torch.zeros(n)], dim=1)
    assert int((scope.measure(x) > 1 + 1e-5).sum()) == beyond
    assert float(scope.measure(x)[n - 1 - beyond]) == pytest.approx(1)


def test_a_limit_is_never_below_one_standard_deviation() -> None:
    scope = Scope(torch.eye(2), torch.zeros(2))
    assert torch.equal(scope.widen(torch.full((200,), 1e-6)).directions, scope.directions)


def test_prompts_that_were_fitted_on_set_no_limit() -> None:
    fitted, aside = make_task(40, 1), make_task(40, 2)
    aside.input_ids[:15] = fitted.input_ids[:15]
    assert fit_scope(make_circuit(), fitted, aside).n_aside == 25
    with pytest.raises(InputError, match="no selection prompt is new"):
        fit_scope(make_circuit(), fitted, fitted)


def test_one_prompt_again_and_again() -> None:
    """No covariance at all: what there is is finite, and that prompt and those aside are in scope."""
    model, one, aside = make_circuit(), make_task(1, 1), make_task(40, 2)
    same = replace(one, input_ids=one.input_ids.expand(40, -1).contiguous(), answer_ids=one.answer_ids.expand(40, -1))
    scope = fit_scope(model, same, aside)
    assert scope.directions.isfinite().all()
    assert scope.shift.isfinite().all()
    assert (measure(model, scope, same) <= 1).all()
    assert (measure(model, scope, aside) <= 1.001).all()  # the limit of 40 prompts is their largest distance


def test_a_stream_that_never_differs_or_is_not_finite_is_refused() -> None:
    model = make_circuit()
    with pytest.raises(InputError, match="the same for all prompts"):
        fit_scope(model.replace(W_E=torch.zeros_like(model.W_E)), make_task(20, 1), make_task(20, 2))
    broken = model.W_E.detach().clone()
    broken[LAST[0]] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        fit_scope(model.replace(W_E=broken), make_task(20, 1), make_task(20, 2))
    with pytest.raises(InputError, match="fitted must be"):
        fit_scope(model, make_task(20, 1).input_ids, make_task(20, 2))  # type: ignore[arg-type]


def test_prompts_end_before_their_answers() -> None:
    """Two answer tokens: the prompt ends before the first; a prompt of one is as long as it is."""
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    data = Dataset(ids, torch.tensor([[[9], [4]], [[-1], [4]]]))
    assert [rows.tolist() for rows, _ in take_prompts(data)] == [[[1, 2, 3]], [[5, 6, 7, 8]]]


def test_the_fit_is_the_same_again_and_leaves_its_arguments_alone() -> None:
    model, fitted, aside = make_circuit(), make_task(40, 1), make_task(40, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = fit_scope(model, fitted, aside), fit_scope(model, fitted, aside)
    assert torch.equal(first.directions, second.directions)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert first.directions.shape == (16, min(16, N_DIRECTIONS))
    blank = Scope.blank(model.W_E.shape[1])
    assert (measure(model, blank, make_prompts(VOCAB, 6)) == 0).all()
