"""Removal with repair: which units of a sublayer can go if the others make up for it, and what that costs.

Optimal Brain Surgeon (Hassibi and Stork, 1993) with rows of an output projection in the place of single weights, as in
ZipLM (arXiv 2302.04089) and OSSCAR (arXiv 2403.12983). With H the centred covariance of what the projection W reads, a
unit of rows B that goes raises the squared error by W_B' ([H^-1]_BB)^-1 W_B, summed over *all* output columns, once the
rows that stay are refitted; and H^-1 without the unit follows from H^-1 by a downdate. So one pass gives an order and
the error after each removal. The gradual search scores by `gates`: this is better at some sizes and worse at others
(benchmarks/refit_table.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.step import find_last_attending
from exporter.search.moments import Moments, find_read, find_rows, list_outputs, read_inputs, take_slopes
from exporter.search.ranks import SOLO, Ranks
from exporter.tasks.dataset import Dataset

DAMPING = 1e-2  # of the mean variance of an input
_SHRINK = 0.8  # what is gone is left out of the matrices when so many units of them are left


@dataclass(frozen=True, eq=False)
class Removal:
    """The units of a sublayer in the order in which they go, (unit,), and the squared error after each, (unit,)."""

    order: Tensor
    errors: Tensor

    @property
    def worth(self) -> Tensor:
        """By how much the error grows when a unit goes in this order, and never less than of one before it: (unit,)."""
        rises = self.errors.diff(prepend=self.errors.new_zeros(1)).cummax(0).values
        return torch.empty_like(rises).index_copy_(0, self.order, rises)


def remove_units(H: Tensor, W: Tensor, size: int) -> Removal:
    """Remove units of `size` rows each, one after the other, always the one that raises the error least.

    H: (k, k), positive definite, a sum over tokens. W: (k, m), the projection that the error is measured from, times
    a square root of the metric where output columns do not count alike. All in float64.
    """
    units, inverse = torch.arange(len(H) // size), torch.linalg.inv(H)
    W = W.unflatten(0, (-1, size)).clone()  # (unit, size, m)
    is_here = torch.ones(len(units), dtype=torch.bool)
    order, errors, error = [], [], torch.zeros((), dtype=H.dtype)
    while is_here.any():
        if is_here.sum() < _SHRINK * len(units):
            rows = is_here.repeat_interleave(size)
            units, inverse, W = units[is_here], inverse[rows][:, rows], W[is_here]
            is_here = is_here[is_here]
        blocks = inverse.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2)
        blocks = blocks.permute(2, 0, 1).clone()  # (unit, size, size)
        blocks[~is_here] = torch.eye(size, dtype=H.dtype)
        changes = W / blocks if size == 1 else torch.linalg.solve(blocks, W)  # ([H^-1]_BB)^-1 W_B
        rises = (W * changes).sum((1, 2)).masked_fill(~is_here, torch.inf)
        unit = int(rises.argmin())
        error = error + rises[unit]
        order.append(units[unit])
        errors.append(error)
        is_here[unit] = False
        columns = inverse[:, unit * size : (unit + 1) * size].clone()  # (k, size)
        W -= (columns @ changes[unit]).view_as(W)
        W[unit] = 0.0
        inverse -= columns @ torch.linalg.solve(blocks[unit], columns.T)
    return Removal(torch.stack(order), torch.stack(errors))


@torch.no_grad()
def score_repaired(
    model: CircuitModel, drawn: Sequence[tuple[Dataset, Tensor]], *, ranks: Ranks = SOLO
) -> dict[str, Tensor]:
    """What each unit is worth if the others make up for it, by site: (unit,) float64, to compare across sublayers.

    drawn: this rank's parts of the prompts, with tokens from the dense model's distribution, (prompt, step) each. With
    g the gradient of their log-likelihood at a sublayer's output, errors are measured in the metric of g g', and a
    token weighs in H what |g|^2 is on average at its position: the Fisher information of the output projection, as if
    it were a product of the two (arXiv 1503.05671).
    """
    moments, metrics = _gather(model, drawn, ranks)
    scores = {}
    for step, found, metric in zip(model.steps, moments, metrics, strict=True):
        variances, axes = torch.linalg.eigh(metric / metric.trace().clamp(min=1e-300))
        root, (C_xx, _), start = axes * variances.clamp(min=0).sqrt(), found.centre(), 0
        for sublayer, output in zip(step.sublayers, list_outputs(step), strict=True):
            here = slice(start, start + len(output))
            start += len(output)
            H, site = C_xx[here, here], sublayer.sites[-1]
            H = H + (DAMPING * H.diagonal().mean() + 1e-300) * torch.eye(len(H), dtype=H.dtype)
            scores[site.name] = remove_units(H, output.double() @ root, len(output) // len(site.units)).worth
    return scores


def _gather(model: CircuitModel, drawn: Sequence[tuple[Dataset, Tensor]], ranks: Ranks) -> tuple[list[Moments], Tensor]:
    """Moments of what each step's projections read, and the sum of g g' at its output: (step, d_model, d_model)."""
    last = find_last_attending(model.steps)
    n_rows, d_model = model.length or 1, model.W_E.shape[1]
    moments = [Moments(n_rows, sum(len(output) for output in list_outputs(step)), 0) for step in model.steps]
    metrics = torch.zeros(len(moments), d_model, d_model, dtype=torch.float64)
    sums = torch.zeros(2, len(moments), n_rows, dtype=torch.float64)  # of |g|^2, and how many tokens
    placed = [model.place(part.input_ids, part.mask, length=part.length) for part, _ in drawn]

    for (part, tokens), at in zip(drawn, placed, strict=True):
        for index, slope in enumerate(take_slopes(model, part, tokens)):
            n_last, g = part.n_steps if index >= last else None, slope.double()
            read = find_read(part, n_last).expand(g.shape[:2])
            rows = find_rows(at, n_last, n_rows).expand(g.shape[:2])[read]
            sums[0, index].index_add_(0, rows, g.square().sum(-1)[read])
            sums[1, index].index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
            metrics[index] += g.flatten(0, 1).T @ g.flatten(0, 1)
    ranks.add_up([sums, metrics])
    weights = sums[0] / sums[1].clamp(min=1)  # (step, row)
    for (part, _), at in zip(drawn, placed, strict=True):
        x = model.embed(part.input_ids, at)
        for index, step in enumerate(model.steps):
            n_last = part.n_steps if index >= last else None
            inputs, rows = read_inputs(step, x, at, n_last), find_rows(at, n_last, n_rows)
            moments[index].add(inputs, inputs[..., :0], rows, weights[index][rows] * find_read(part, n_last))
            x = step(x, at, n_last=n_last)
    ranks.add_up([tensor for found in moments for tensor in found.sums])
    return moments, metrics
