"""Residual streams of many prompts: in chunks, with the shared opening kept once, and checkpointed by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.network.positions import Positions
from exporter.network.step import Step


@dataclass(frozen=True, eq=False)
class Residual:
    """The residual stream of some prompts, in chunks, and of the opening (the tokens that all prompts start with).

    opening: (1, opening, d_model); None if the prompts share no opening, or no later attention reads it. chunks:
    (prompt, pos, d_model) each, without the opening. at: the positions of each chunk.
    """

    at: list[Positions]
    opening: Tensor | None
    chunks: list[Tensor]

    def through(self, step: Step) -> Residual:
        """The residual after `step`, at every position."""
        chunks = [step(x, at, opening=self.opening) for x, at in zip(self.chunks, self.at, strict=True)]
        return Residual(self.at, None if self.opening is None else step(self.opening, self.at_opening), chunks)

    def plus(self, other: Residual) -> Residual:
        """The sum of two residuals, at the positions of `other`; with an opening only if both have one."""
        opening = None if self.opening is None or other.opening is None else self.opening + other.opening
        return Residual(other.at, opening, [x + y for x, y in zip(self.chunks, other.chunks, strict=True)])

    def map(self, function: Callable[[Tensor, Positions], Tensor]) -> Residual:
        """Apply a function of (tensor, positions) to the opening and to each chunk."""
        opening = None if self.opening is None else function(self.opening, self.at_opening)
        return Residual(self.at, opening, [function(x, at) for x, at in zip(self.chunks, self.at, strict=True)])

    def take_last(self, n: int) -> Residual:
        """The residual at the last n positions alone, without the opening."""
        return Residual([at.take_last(n) for at in self.at], None, [x[:, -n:] for x in self.chunks])

    def to(self, device: torch.device | None) -> Residual:
        """The residual on a device; itself where it is there already, or for None."""
        if device is None or self.chunks[0].device == device:
            return self
        opening = None if self.opening is None else self.opening.to(device)
        return Residual([at.to(device) for at in self.at], opening, [x.to(device) for x in self.chunks])

    @property
    def at_opening(self) -> Positions:
        """The positions of the opening."""
        assert self.at[0].opening is not None
        return self.at[0].opening


class DenseResiduals:
    """The dense residual before each layer, with activation checkpointing (Chen et al., arXiv 1604.06174).

    Kept before every `keep_every`-th layer, and recomputed before the others. Each is kept on the device of the layer
    that computed it. `last` is the residual after the last layer.
    """

    def __init__(self, layers: list[list[Step]], first: Residual, keep_every: int) -> None:
        self.layers = layers
        self.keep_every = keep_every
        self.before = {0: first}
        x = first
        for index in range(len(layers)):
            if index % keep_every == 0:
                self.before[index] = x
            x = self._through(index, x)
        self.last = x

    def _through(self, index: int, x: Residual) -> Residual:
        for step in self.layers[index]:
            step = step.load()
            x = x.to(step.device).through(step)
        return x

    def take(self, index: int) -> Residual:
        """Remove and return the residual before layer `index`; layers must be taken from the last to the first."""
        if index not in self.before:
            for earlier in range(index - index % self.keep_every, index):
                self.before[earlier + 1] = self._through(earlier, self.before[earlier])
        return self.before.pop(index)
