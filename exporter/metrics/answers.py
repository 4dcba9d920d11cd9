"""Two models' logits at the answer positions of some prompts: the argument of every metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from exporter.tasks.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits of a model and of its reference model: (prompt, step, vocab or answer) both.

    The reference of a circuit is the dense model; that of a file is the circuit in fp32. Where the last axis is a list
    of answers, `by_token` spreads it to (prompt, step, vocab) before predictions are taken.
    """

    prompts: Dataset
    logits: Tensor
    reference_logits: Tensor
    by_token: Callable[[Tensor], Tensor] = lambda logits: logits

    @cached_property
    def predicted(self) -> Tensor:
        """The model's likeliest token at each answer position: (prompt, step) int64."""
        return self.prompts.predict(self.by_token(self.logits))

    @cached_property
    def reference_predicted(self) -> Tensor:
        """The reference's likeliest token at each answer position: (prompt, step) int64."""
        return self.prompts.predict(self.by_token(self.reference_logits))


Metric = Callable[[Answers], Tensor]
"""A value for each prompt, (prompt,) float64; each metric says how it combines the tokens of a longer answer."""
