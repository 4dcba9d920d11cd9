"""The objective of a search: KL(dense || pruned model), fused with the unembedding.

A state of the search needs one log-sum-exp over the vocabulary (`exporter.metrics.divergence.KLTarget`). The final norm
and all sums are in float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from exporter.metrics.divergence import KLTarget
from exporter.network.model import CircuitModel
from exporter.network.step import Step, run_to_last
from exporter.search.ranks import Ranks
from exporter.search.residuals import Residual
from exporter.tasks.dataset import Dataset


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
