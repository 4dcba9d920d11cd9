"""The objective of a search: KL(dense || pruned model), fused with the unembedding, or any other metric.

For KL a state of the search needs one log-sum-exp over the vocabulary (`exporter.metrics.divergence.KLTarget`). Other
metrics need its logits; these are the dense model's, and what the change of the normalised residual adds, so that
rounding errors are small where a state is near the dense model. The final norm and all sums are in float64, whatever
the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor

from exporter.metrics import METRICS, Answers, Metric
from exporter.metrics.divergence import KLTarget
from exporter.network.model import CircuitModel
from exporter.network.step import Step, run_to_last
from exporter.search.ranks import Ranks
from exporter.search.residuals import Residual
from exporter.tasks.dataset import Dataset

_WIDE_BLOCK = 1024  # rows of W_U in float64 at once


class Objective(Protocol):
    """What a search minimises: 0 for the dense model."""

    def price(self, states: Sequence[Residual], above: Sequence[Step]) -> list[float]:
        """The loss of each state over the prompts of all ranks: residuals before the steps `above`."""


class KLObjective:
    """KL(dense || state) in nats, the mean over all answers of the selection set.

    share: this rank's prompts. last: the dense model's residual of them after its last layer, in chunks of `chunk`
    prompts.
    """

    def __init__(
        self, dense: CircuitModel, selection: Dataset, share: Dataset, last: Residual, *, chunk: int, ranks: Ranks
    ) -> None:
        self.ranks = ranks
        self.n_last = selection.n_steps
        self.n_answers = int(selection.counted.sum())
        self.final_norm = deepcopy(dense.final_norm).double()
        self.counted = [part.counted.to(dense.W_U.device) for part in share.split(chunk)]  # (prompt, step)
        self.targets = [
            KLTarget.of(dense.W_U, self._normalise(x[:, -self.n_last :], counted))
            for x, counted in zip(last.chunks, self.counted, strict=True)
        ]

    def price(self, states: Sequence[Residual], above: Sequence[Step]) -> list[float]:
        """The mean KL of each state in nats, over the prompts of all ranks.

        states: residuals before the steps `above`, one for each state. Raises LostRankError: another process is gone.
        """
        total = torch.zeros(len(states), dtype=torch.float64)
        for index, (target, counted) in enumerate(zip(self.targets, self.counted, strict=True)):
            lasts = [
                run_to_last(above, state.chunks[index], state.at[index], n_last=self.n_last, opening=state.opening)
                for state in states
            ]
            total += target.kl(self._normalise(torch.stack(lasts), counted)).sum(-1).cpu()
        return [kl / self.n_answers for kl in self.ranks.sum(total.tolist())]

    def _normalise(self, last: Tensor, counted: Tensor) -> Tensor:
        """The residual after the final norm in float64, at the answer positions that `counted` marks.

        last: (..., prompt, step, d_model). counted: (prompt, step) bool. Returns (..., answer, d_model).
        """
        normed: Tensor = self.final_norm(last.to(counted.device)[..., counted, :].double())
        return normed


class MetricObjective:
    """By how much a metric's mean over the prompts of the selection set is worse than the dense model's.

    In the metric's unit, below 0 where the state is better than the dense model. share, last: as in `KLObjective`.
    """

    def __init__(
        self,
        metric: Metric,
        dense: CircuitModel,
        selection: Dataset,
        share: Dataset,
        last: Residual,
        *,
        chunk: int,
        ranks: Ranks,
    ) -> None:
        self.metric, self.ranks, self.W_U = metric, ranks, dense.W_U
        self.n_last, self.n_prompts = selection.n_steps, len(selection)
        self.n_answers = int(selection.counted.sum())
        self.final_norm = deepcopy(dense.final_norm).double()
        self.prompts = [part.to("cpu") for part in share.split(chunk)]
        self.normed = [self._normalise(x[:, -self.n_last :]) for x in last.chunks]  # (prompt, step, d_model) each
        self.logits = [_unembed(self.W_U, x).cpu() for x in self.normed]  # (prompt, step, vocab) each
        dense_values = (Answers(part, x, x) for part, x in zip(self.prompts, self.logits, strict=True))
        self.of_dense = self._average(metric, dense_values)

    def price(self, states: Sequence[Residual], above: Sequence[Step]) -> list[float]:
        """The loss of each state over the prompts of all ranks, in the metric's unit.

        states: residuals before the steps `above`, one for each state. Raises LostRankError: another process is gone.
        """
        means = [self._average(self.metric, self._answer(state, above)) for state in states]
        return [self.metric.sign * (mean - self.of_dense) for mean in means]

    def find_kl(self, state: Residual, above: Sequence[Step]) -> float:
        """KL(dense || state) in nats, the mean over all answers of the selection set."""
        values = torch.cat([METRICS["kl"](part) for part in self._answer(state, above)])  # (prompt,)
        weights = torch.cat([part.counted.sum(dim=1) for part in self.prompts])
        return self.ranks.sum([float((values * weights).sum())])[0] / self.n_answers

    def _answer(self, state: Residual, above: Sequence[Step]) -> Iterator[Answers]:
        """A state's logits beside the dense model's, chunk by chunk."""
        for index, (part, normed, logits) in enumerate(zip(self.prompts, self.normed, self.logits, strict=True)):
            last = run_to_last(above, state.chunks[index], state.at[index], n_last=self.n_last, opening=state.opening)
            change = (self._normalise(last) - normed).float()  # (prompt, step, d_model)
            yield Answers(part, logits + (change @ self.W_U.float().T).cpu(), logits)

    def _average(self, metric: Metric, parts: Iterator[Answers]) -> float:
        """The mean over the prompts of all ranks."""
        total = sum(float(metric(some).sum()) for part in parts for some in part.split())
        return self.ranks.sum([total])[0] / self.n_prompts

    def _normalise(self, last: Tensor) -> Tensor:
        normed: Tensor = self.final_norm(last.to(self.W_U.device).double())
        return normed


def _unembed(W_U: Tensor, normed: Tensor) -> Tensor:
    """Logits in float32 of products in float64: (vocab, d_model), (prompt, step, d_model) to (prompt, step, vocab)."""
    return torch.cat([(normed @ tokens.double().T).float() for tokens in W_U.split(_WIDE_BLOCK)], dim=-1)


def make_objective(
    name: str,
    dense: CircuitModel,
    selection: Dataset,
    share: Dataset,
    last: Residual,
    *,
    chunk: int,
    ranks: Ranks,
) -> Objective:
    """The objective of a metric of `SEARCHED`, by its name."""
    if name == "kl":
        return KLObjective(dense, selection, share, last, chunk=chunk, ranks=ranks)
    return MetricObjective(METRICS[name], dense, selection, share, last, chunk=chunk, ranks=ranks)
