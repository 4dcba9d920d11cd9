"""Steps: sublayers that read the same residual, and the forward pass through steps to the last positions.

A step reads the residual once: each of its sublayers (attention or MLP) normalises it, computes, and
adds its output back; a constant may be added with them. Weights are stored (in, out), `x @ W`; heads are
concatenated along the wide axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.norm import freeze
from exporter.network.positions import Positions

Sublayer = Attention | FeedForward


def map_attention(sublayer: Sublayer, change: Callable[[Attention], Attention]) -> Sublayer:
    """change(sublayer) for attention; an MLP as it is."""
    return change(sublayer) if isinstance(sublayer, Attention) else sublayer


def find_last_attending(steps: Sequence[Step] | Sequence[Sublayer]) -> int:
    """The index of the last step that attends, -1 if none does. Its output and later ones need only last positions."""
    return max((index for index, step in enumerate(steps) if step.attends), default=-1)


def list_attentions(steps: Sequence[Step]) -> list[Attention]:
    """The attention sublayers of some steps, in their order: those whose keys and values a decoder keeps."""
    return [sublayer for step in steps for sublayer in step.sublayers if isinstance(sublayer, Attention)]


class Step(nn.Module):
    """Sublayers that read the same residual, and a constant that is added with their outputs.

    constant: (d_model,), or (pos, d_model) where it differs by position, or None. `load`: returns this step with its
    weights in memory, for a step whose weights are offloaded; None if they are in memory.
    """

    def __init__(
        self, sublayers: list[Sublayer], constant: Tensor | None = None, *, load: Callable[[], Step] | None = None
    ) -> None:
        super().__init__()
        self.sublayers = cast("Sequence[Sublayer]", nn.ModuleList(sublayers))  # ModuleList is not generic
        self.constant = freeze(constant)
        self._load = load

    def load(self) -> Step:
        """The step with its weights in memory; `self` unless they are offloaded."""
        return self if self._load is None else self._load()

    @property
    def attends(self) -> bool:
        """Whether a position's output depends on other positions."""
        return any(sublayer.attends for sublayer in self.sublayers)

    @property
    def device(self) -> torch.device | None:
        """The device of the step's tensors; None if it has none."""
        return next((tensor.device for tensor in self.parameters()), None)

    def forward(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """The residual after the step: (batch, pos, d_model), or (batch, n_last, d_model).

        For a step that does not attend, x may hold the last positions only. `opening` as in `Attention.z`.
        """
        if self.device is not None:
            x, at = x.to(self.device), at.to(self.device)
            opening = None if opening is None else opening.to(self.device)
        out = self.add_constant(x if n_last is None else x[:, -n_last:], at)
        for sublayer in self.sublayers:
            out = out + sublayer(x, at, n_last=n_last, opening=opening)
        return out

    def add_constant(self, x: Tensor, at: Positions) -> Tensor:
        """A residual at the last of the positions `at`, (batch, pos, d_model), with the step's constant added."""
        if self.constant is None:
            return x
        return x + (self.constant if self.constant.ndim == 1 else at.take_last(x.shape[1]).pick(self.constant))


def run_to_last(
    steps: Sequence[Step],
    x: Tensor,
    at: Positions,
    *,
    n_last: int = 1,
    opening: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """The residual at the last positions after the given steps: (batch, pos, d_model) -> (batch, n_last, d_model).

    The last step that attends, and all later ones, compute only these positions; if none attends, x may hold them only.
    `opening`, (1, opening, d_model), is the residual before x in every prompt, at the positions `at.opening`. With
    `recompute` a step's activations are not kept for its gradients, but computed again (Chen et al., arXiv 1604.06174).
    """
    reads_all = find_last_attending(steps)
    for index, step in enumerate(steps):
        cut, step = n_last if index >= reads_all else None, step.load()
        after = None if opening is None or cut or at.opening is None else step(opening, at.opening)
        run = partial(step, at=at, n_last=cut, opening=opening)
        x, opening = checkpoint(run, x, use_reentrant=False) if recompute else run(x), after
    return x[:, -n_last:]
