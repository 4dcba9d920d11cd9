"""Second moments of what a step's output projections read, and of what they should give, over many prompts.

Tokens are taken in part by part, so that activations are never held for all prompts. Sums are kept by row of the
network's constants: where there is a constant for each position, each position is centred about its own mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.positions import Positions
from exporter.network.step import Step, find_last_attending
from exporter.tasks.dataset import Dataset


class Moments:
    """Weighted sums over tokens of inputs x (k,) and outputs y (m,), by row of the constants, in float64."""

    def __init__(self, n_rows: int, k: int, m: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.n = zeros(n_rows)
        self.x, self.y = zeros(n_rows, k), zeros(n_rows, m)
        self.xx, self.xy, self.yy = zeros(k, k), zeros(k, m), zeros(1)

    @property
    def sums(self) -> list[Tensor]:
        """All of them, for adding up over processes."""
        return [self.n, self.x, self.y, self.xx, self.xy, self.yy]

    def add(self, x: Tensor, y: Tensor, rows: Tensor, weights: Tensor) -> None:
        """Take in x (prompt, pos, k), y (prompt, pos, m), rows and weights (prompt or 1, pos or 1).

        A token of weight 0 is left out.
        """
        weights, rows = weights.expand(x.shape[:2]), rows.expand(x.shape[:2])
        taken = weights > 0
        x, y, rows, weight = x[taken].double(), y[taken].double(), rows[taken], weights[taken].double()[:, None]
        self.n.index_add_(0, rows, weight[:, 0])
        self.x.index_add_(0, rows, weight * x)
        self.y.index_add_(0, rows, weight * y)
        self.xx += (weight * x).T @ x
        self.xy += (weight * x).T @ y
        self.yy += (weight * y.square()).sum()

    def centre(self) -> tuple[Tensor, Tensor]:
        """Covariances, times the weight of all tokens: (k, k) of x with itself, (k, m) of x with y."""
        means = self.x / self._counts
        return self.xx - means.T @ self.x, self.xy - means.T @ self.y

    def find_constant(self, W: Tensor) -> Tensor:
        """The best constant beside x @ W, mean(y) - mean(x) @ W: (row, m), 0 in a row that no token has."""
        return (self.y - self.x @ W) / self._counts

    def error(self, W: Tensor, constant: Tensor) -> float:
        """The weighted sum of |y - x @ W - constant|^2."""
        linear = (W * (self.xx @ W - 2 * self.xy)).sum()
        shifted = (constant * (2 * (self.x @ W - self.y) + self.n[:, None] * constant)).sum()
        return float(self.yy + linear + shifted)

    @property
    def _counts(self) -> Tensor:
        return torch.where(self.n > 0, self.n, 1.0)[:, None]


def list_outputs(step: Step) -> list[Tensor]:
    """The output projections of a step's sublayers, (in, d_model) each."""
    return [sublayer.get_parameter(sublayer.out_weight_name) for sublayer in step.sublayers]


def read_inputs(step: Step, x: Tensor, at: Positions, n_last: int | None) -> Tensor:
    """What a step's output projections read, side by side, for the residual x before it: (prompt, pos, k)."""
    n = x.shape[1] if n_last is None else n_last
    found = [sublayer.sites[-1].read(x, at, n_last=n_last).flatten(2) for sublayer in step.sublayers]
    return torch.cat([x.new_zeros(len(x), n, 0), *found], dim=-1)


def find_rows(at: Positions, n_last: int | None, n_rows: int) -> Tensor:
    """Rows of the constants of a network, by position, of the last n_last, or all: (prompt or 1, pos or 1)."""
    return at.take_last(n_last).rows if n_rows > 1 else torch.zeros(1, 1, dtype=torch.int64)


def find_read(prompts: Dataset, n_last: int | None) -> Tensor:
    """Which positions something reads after a step that computes the last n_last, or all: (prompt or 1, pos) bool."""
    if n_last is not None:
        return prompts.counted
    return torch.ones(1, prompts.length, dtype=torch.bool) if prompts.mask is None else prompts.mask


def take_slopes(model: CircuitModel, part: Dataset, tokens: Tensor) -> list[Tensor]:
    """The gradient of the log-likelihood of tokens, (prompt, step), at the residual after each step of a network.

    (prompt, pos, d_model) each; from the last step that attends on (prompt, n_steps, d_model).
    """
    at, last = model.place(part.input_ids, part.mask, length=part.length), find_last_attending(model.steps)
    with torch.enable_grad():
        x, bumps = model.embed(part.input_ids, at), list[Tensor]()
        for index, step in enumerate(model.steps):
            x = step.load()(x, at, n_last=part.n_steps if index >= last else None)
            bumps.append(torch.zeros_like(x, requires_grad=True))
            x = x + bumps[-1]
        log_p = model.unembed(x[:, -part.n_steps :]).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        return list(torch.autograd.grad((log_p * part.counted).sum(), bumps))
