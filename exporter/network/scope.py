"""Scope: how far a prompt's residual at the answer position is from that of the prompts a circuit was found on.

The distance is a Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888), in the directions in which prompts of random
tokens differ most from those of the task: a circuit keeps little of the stream, and most of its directions say nothing.
With S the task's covariance and B the second moment of random prompts around the task's mean, the directions w are the
leading ones of B w = lambda (S + N) w, scaled to a variance of 1 in S + N. N = shrink B + floor mean(diag B) I is what
counts as no difference, and makes a singular S no matter.

The limit is set on prompts that were not fitted on, as the conformal quantile: where prompts are exchangeable, at most
`alarms` of the task's prompts are beyond it (Vovk et al. 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from exporter.checks import require_type
from exporter.errors import InputError
from exporter.network.model import CircuitModel
from exporter.network.step import run_to_last
from exporter.tasks.dataset import Dataset

ALARMS = 0.01  # share of the task's own prompts that may be beyond the limit
N_DIRECTIONS = 64
SHRINK = 0.01
FLOOR = 1e-4
N_RANDOM = 1000  # prompts of random tokens
_CHUNK = 32
_ROUNDING = 1e-10  # of float32, squared and with room

Read = Callable[[Tensor, Tensor | None], Tensor]
"""(prompt, pos) token ids, and their mask or None, to the residuals at the last position, (prompt, d_model)."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The squared distance of a residual x is |x @ directions + shift|^2, and 1 at the limit.

    directions: (d_model, direction) float32. shift: (direction,) float32. n_fitted, n_aside: prompts that the
    distance was fitted on, and others that set the limit. alarms: the share of the task's prompts that may be beyond
    it; larger than `ALARMS` where `n_aside` is too small for that.
    """

    directions: Tensor
    shift: Tensor
    n_fitted: int = 0
    n_aside: int = 0
    alarms: float = ALARMS

    @classmethod
    def blank(cls, d_model: int) -> Scope:
        """One of the usual size that every prompt is in, to time and to rehearse with."""
        n = min(N_DIRECTIONS, d_model)
        return cls(torch.zeros(d_model, n), torch.zeros(n))

    def measure(self, residuals: Tensor) -> Tensor:
        """Squared distances of residuals at answer positions, (..., d_model): (...). NaN for NaN."""
        return (residuals @ self.directions + self.shift).square().sum(-1)

    def widen(self, distances: Tensor) -> Scope:
        """The same with a limit, at least the present one, that squared distances of n prompts of the task keep.

        It is the ceil((n + 1) (1 - alarms))-th smallest of them; where that is more than n, the largest, and `alarms`
        becomes 1 / (n + 1).
        """
        n = len(distances)
        rank = math.ceil((n + 1) * (1 - self.alarms))
        scale = max(float(distances.sort().values[min(rank, n) - 1]), 1.0) ** -0.5
        alarms = self.alarms if rank <= n else 1 / (n + 1)
        return replace(self, directions=self.directions * scale, shift=self.shift * scale, alarms=alarms)


@torch.inference_mode()
def measure_scope(model: CircuitModel, scope: Scope, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each prompt's squared distance, (batch,), 1 at the limit; the reference for a graph's `scope_distance`.

    Raises InputError as `CircuitModel.place` does.
    """
    return scope.measure(read_residuals(model, input_ids, mask))


@torch.inference_mode()
def read_residuals(model: CircuitModel, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The residual at the last position, before the final norm: (batch, d_model). Raises InputError as `place`."""
    at = model.place(input_ids, mask)
    x = run_to_last(model.steps, model.embed(input_ids, at), at)
    return x[:, -1].to(input_ids.device)


def take_prompts(dataset: Dataset) -> list[tuple[Tensor, Tensor | None]]:
    """The prompts without answers, as a user sends them, in chunks: token ids and mask of (prompt, pos).

    The prompt of an answer of several tokens ends before the first of them. Chunks hold prompts with as many answer
    tokens, so that all end at the last position; the order is by that number.
    """
    first = dataset.counted.long().argmax(dim=1)  # (prompt,): the first answer position
    chunks = []
    for step in first.unique().tolist():
        rows, end = (first == step).nonzero()[:, 0], dataset.length - dataset.n_steps + 1 + step
        for some in rows.split(_CHUNK):
            mask = None if dataset.mask is None else dataset.mask[some, :end]
            chunks.append((dataset.input_ids[some, :end], mask))
    return chunks


def fit_scope(
    model: CircuitModel, fitted: Dataset, aside: Dataset, *, alarms: float = ALARMS, read: Read | None = None
) -> Scope:
    """Fit the distance on the prompts of `fitted`, and set its limit on those of `aside` that are not among them.

    The limit is that of `Scope.widen`, and at least a squared distance of 1: a standard deviation along one direction.
    Sums are in float64. `read` gives the residuals of a file that rounds, where those are to be fitted; default: the
    model's own. Raises InputError: no prompt aside is left, residuals are not finite, or the same for all prompts.
    """
    for name, given, kind in (("model", model, CircuitModel), ("fitted", fitted, Dataset), ("aside", aside, Dataset)):
        require_type(name, given, kind)
    kept = _take_aside(aside, fitted)
    if not kept:
        raise InputError("no selection prompt is new, and the limit of --guard is set on such: give others")
    read = read or partial(read_residuals, model)
    own, others = _read_all(read, take_prompts(fitted)), _read_all(read, kept)
    random = _read_all(read, _draw_random(take_prompts(fitted), len(model.W_E)))
    if not all(bool(x.isfinite().all()) for x in (own, others, random)):
        raise InputError("the kept stream is not finite at some answer position, and --guard goes by it; leave it out")
    center = own.mean(dim=0)
    if not float((random - center).square().mean()) > _ROUNDING * float(random.square().mean()):
        raise InputError("the kept stream is the same for all prompts, and --guard goes by it; leave it out")
    directions = _find_directions(own - center, random - center)
    fit = Scope(directions, -(center @ directions), len(fitted), len(others), alarms)
    found = fit.widen(fit.measure(others))
    return replace(found, directions=found.directions.float().contiguous(), shift=found.shift.float())


def _find_directions(own: Tensor, random: Tensor) -> Tensor:
    """The directions, (d_model, direction) float64, of residuals (prompt, d_model) around the task's mean."""
    S, B = own.T @ own / len(own), random.T @ random / len(random)  # (d_model, d_model)
    size = B.diagonal().mean()
    inner = torch.linalg.cholesky(S + SHRINK * B + FLOOR * size * torch.eye(len(B), dtype=B.dtype))
    # with S + N = L L', the eigenvectors of inv(L) B inv(L)' are L' w
    whitened = torch.linalg.solve_triangular(inner, torch.linalg.solve_triangular(inner, B, upper=False).T, upper=False)
    _, turn = torch.linalg.eigh((whitened + whitened.T) / 2)
    found: Tensor = torch.linalg.solve_triangular(inner.T, turn[:, -N_DIRECTIONS:], upper=True)
    return found


def _read_all(read: Read, chunks: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    return torch.cat([read(ids, mask) for ids, mask in chunks]).double().cpu()  # (prompt, d_model)


def _draw_random(chunks: list[tuple[Tensor, Tensor | None]], n_tokens: int) -> list[tuple[Tensor, Tensor | None]]:
    """Prompts of random tokens, as long as some of the chunks' in turn."""
    generator = torch.Generator().manual_seed(0)
    drawn: list[tuple[Tensor, Tensor | None]] = []
    n = 0
    while n < N_RANDOM:
        ids, mask = chunks[len(drawn) % len(chunks)]
        drawn.append((torch.randint(n_tokens, ids.shape, generator=generator).to(ids.device), mask))
        n += len(ids)
    return drawn


def _take_aside(aside: Dataset, fitted: Dataset) -> list[tuple[Tensor, Tensor | None]]:
    """`take_prompts` of those prompts of `aside` that are not in `fitted`."""
    seen = {prompt for ids, mask in take_prompts(fitted) for prompt in _as_tuples(ids, mask)}
    kept = []
    for ids, mask in take_prompts(aside):
        rows = torch.tensor([prompt not in seen for prompt in _as_tuples(ids, mask)])
        if bool(rows.any()):
            kept.append((ids[rows], None if mask is None else mask[rows]))
    return kept


def _as_tuples(ids: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return [tuple(row[own].tolist()) for row, own in zip(ids, real, strict=True)]
