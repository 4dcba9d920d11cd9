"""Two models' logits at the answer positions of some prompts: the argument of every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from exporter.metrics.alternatives import Alternatives, split_choices, split_vocabulary
from exporter.tasks.dataset import Dataset

_NUMBERS = 2**19  # logits at once in `Answers.split`


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

    @cached_property
    def of_reference(self) -> Answers:
        """The reference model's own answers, with itself as reference."""
        return replace(self, logits=self.reference_logits)

    @cached_property
    def log_p(self) -> Tensor:
        """The model's log-probabilities, float64: (prompt, step, vocab or answer)."""
        return torch.log_softmax(self.logits.double(), dim=-1)

    @cached_property
    def against_all(self) -> Alternatives:
        """Right answers against all other tokens. Raises InputError: a prompt has no right answer."""
        return split_vocabulary(self.prompts, self.by_token(self.logits))

    @cached_property
    def against_choices(self) -> Alternatives:
        """Right answers against wrong choices, where the set has choices, else against all other tokens.

        Raises InputError: a prompt has no right answer.
        """
        if self.prompts.choice_ids is None:
            return self.against_all
        return split_choices(self.prompts, self.by_token(self.logits))

    def split(self) -> Iterator[Answers]:
        """The same in parts that stay in the CPU's cache in float64."""
        size = max(1, _NUMBERS // self.logits[0].numel())
        for start in range(0, len(self.prompts), size):
            rows = slice(start, start + size)
            yield replace(
                self,
                prompts=self.prompts[rows],
                logits=self.logits[rows],
                reference_logits=self.reference_logits[rows],
            )

    def average(self, values: Tensor) -> Tensor:
        """The mean over each prompt's answer positions: (prompt, step) to (prompt,) float64."""
        counted = self.prompts.counted
        return values.double().where(counted, 0.0).sum(dim=1) / counted.sum(dim=1)


Compute = Callable[[Answers], Tensor]
"""A value for each prompt, (prompt,) float64; each says how it combines the tokens of a longer answer."""


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, in which unit, and which way is better, where a search may go by it.

    unit: as it stands behind a number. better: None where no search minimises or maximises it.
    """

    compute: Compute
    unit: str
    better: Literal["higher", "lower"] | None = None

    def __call__(self, answers: Answers) -> Tensor:
        """A value for each prompt: (prompt,) float64."""
        return self.compute(answers)

    @property
    def sign(self) -> float:
        """1 where less is better, -1 where more is: what a search multiplies values by, to minimise them."""
        return -1.0 if self.better == "higher" else 1.0


def of_reference(compute: Compute) -> Compute:
    """The same metric of the reference model."""
    return lambda answers: compute(answers.of_reference)
