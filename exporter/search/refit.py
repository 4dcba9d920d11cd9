"""Refit: the survivors' output projections and the steps' constants, solved in closed form.

Steps are taken from the first to the last. What a step reads, x, is that of the network as it now is, with all steps
before it solved already. What it should add, y, is whatever makes the residual the dense model's again, so that it
mends what removed units and earlier steps left, too. Its projections W change by a ridge regression of what is missing,
W + (C_xx + ridge)^-1 C_xy, from centred covariances, and the constant is mean(y) - mean(x) W. Without any x that is
mean ablation. Positions that nothing reads are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.positions import Positions
from exporter.network.step import Step, find_last_attending
from exporter.search.healing import Healer, Voice
from exporter.search.lessons import Lessons
from exporter.search.memory import LearningPlan
from exporter.search.moments import Moments, find_read, find_rows, list_outputs, read_inputs
from exporter.search.problem import Problem
from exporter.search.ranks import SOLO, Ranks
from exporter.search.state import group_steps
from exporter.tasks.dataset import Dataset

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of an input; prompts kept aside say which
RIDGE = 1e-1  # where none are kept aside
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class Mender:
    """How a network is mended after a cut: refitted, trained by its healer, or both."""

    healer: Healer
    dense: CircuitModel
    refits: bool
    trains: bool

    def heal(self, model: CircuitModel, *, steps: int, seed: int) -> int:
        """Change a network in place; returns how many steps it was trained.

        A refit is taken back where it is further from the teacher on the prompts kept aside.
        """
        healer = self.healer
        if self.refits:
            before, kept = healer.look(model), [parameter.clone() for parameter in model.parameters()]
            aside = None if healer.aside is None else healer.aside.prompts
            refit(model, self.dense, healer.lessons.prompts, aside, ranks=healer.ranks)
            if healer.look(model) > before:
                for parameter, values in zip(model.parameters(), kept, strict=True):
                    parameter.copy_(values)
        return healer.heal(model, steps=steps, seed=seed) if self.trains else 0


def make_healer(
    problem: Problem, lessons: Lessons, aside: Lessons | None, plan: LearningPlan, *, teacher: Voice | None = None
) -> Mender:
    """What a search heals with, after the problem's teacher unless another is named."""
    healer = Healer(lessons, aside, teacher or problem.teacher, problem.ranks, plan)
    return Mender(healer, problem.dense, refits=problem.heal == "refit", trains=problem.heal == "distil")


@dataclass(eq=False)
class _Part:
    """Some prompts on their way through both networks: their residuals before the next step."""

    prompts: Dataset
    at: Positions
    x: Tensor  # of the network: (prompt, pos, d_model), after its last attention (prompt, n_steps, d_model)
    dense: Tensor  # (prompt, pos, d_model)


@torch.no_grad()
def refit(
    model: CircuitModel, dense: CircuitModel, prompts: Dataset, aside: Dataset | None = None, *, ranks: Ranks = SOLO
) -> None:
    """Solve each step's output projections and constant, in place; `model` is what `cut_state` made of `dense`.

    Where prompts are kept aside, each step takes the ridge that is best on them, or stays as it is. Covariances and
    solutions are in float64; between steps only the two residuals are held.
    """
    fitted = _start(model, prompts.split(_CHUNK)[ranks.rank :: ranks.size])
    held = [] if aside is None else _start(model, aside.split(_CHUNK)[ranks.rank :: ranks.size])
    last = find_last_attending(model.steps)
    for index, (step, group) in enumerate(zip(model.steps, group_steps(dense, model), strict=True)):
        n_last = prompts.n_steps if index >= last else None
        for part in (*fitted, *held):
            for place in group:
                part.dense = dense.steps[place].load()(part.dense, part.at)
        moments = _gather(step, fitted, n_last, ranks)
        _solve(step, moments, None if aside is None else _gather(step, held, n_last, ranks))
        for part in (*fitted, *held):
            part.x = step(part.x, part.at, n_last=n_last)


def _start(model: CircuitModel, parts: Sequence[Dataset]) -> list[_Part]:
    """Prompts before the first step: both networks have the same embeddings."""
    started = []
    for part in parts:
        at = model.place(part.input_ids, part.mask, length=part.length)
        x = model.embed(part.input_ids, at)
        started.append(_Part(part, at, x, x))
    return started


def _gather(step: Step, parts: Sequence[_Part], n_last: int | None, ranks: Ranks) -> Moments:
    """Moments of what a step reads, and of what the residual after it lacks of the dense model's."""
    assert step.constant is not None
    n_rows, d_model = (1, *step.constant.shape)[-2:]
    moments = Moments(n_rows, sum(len(output) for output in list_outputs(step)), d_model)
    for part in parts:
        inputs = read_inputs(step, part.x, part.at, n_last)
        lacks = part.dense[:, -inputs.shape[1] :] - step(part.x, part.at, n_last=n_last)
        rows = find_rows(part.at, n_last, n_rows)
        moments.add(inputs, lacks, rows, find_read(part.prompts, n_last).double())
    ranks.add_up(moments.sums)
    return moments


def _solve(step: Step, fitted: Moments, held: Moments | None) -> None:
    """Change a step's projections and constant, in place, by the regression of what is lacking."""
    C_xx, C_xy = fitted.centre()
    variances, axes = torch.linalg.eigh(C_xx)
    scale, along = float(variances.sum()) / max(1, len(variances)), axes.T @ C_xy
    ridges = (RIDGE,) if held is None else RIDGES
    found = [axes @ (along / (variances.clamp(min=0) + ridge * scale).clamp(min=1e-300)[:, None]) for ridge in ridges]
    changes = [(W, fitted.find_constant(W)) for W in found]
    if held is not None:
        nothing = torch.zeros_like(C_xy)
        changes += [(nothing, fitted.find_constant(nothing)), (nothing, torch.zeros_like(fitted.y))]
    W, constant = changes[0] if held is None else min(changes, key=lambda change: held.error(*change))
    outputs = list_outputs(step)
    for output, rows in zip(outputs, W.split([len(output) for output in outputs]), strict=True):
        output.add_(rows.to(output))
    assert step.constant is not None
    step.constant.add_(constant.view_as(step.constant).to(step.constant))
