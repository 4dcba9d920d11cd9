"""What a task is: a name, the parameters that it takes, and the sets of prompts that it makes for a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from exporter.errors import InputError
from exporter.tasks.dataset import Dataset, count_shared
from exporter.tasks.template import Template
from exporter.tasks.tokenizer import Tokenizer

MOST_READINGS = 64  # prompts that a task keeps as text, so that a bundle's tokenizer can be compared with them


PATCHING = 250
"""Prompts in the patching set of a built-in task where nothing is said."""


@dataclass(frozen=True)
class SplitSizes:
    """Prompts in each set; `ood` is the size of every out-of-distribution set.

    patching: None is 250, all lines of a file that names its sets, or what a gradual search has time to learn from.
    """

    patching: int | None = None
    selection: int = 250
    test: int = 500
    ood: int = 200

    def fill(self, patching: int) -> dict[str, int]:
        """The sizes by name, with this one of the patching set where none is given."""
        return asdict(self) | {"patching": self.patching or patching}

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if name == "patching" and size is None:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"the {name} set cannot have {size!r} prompts; give a whole number from 1")


@dataclass(frozen=True)
class Limits:
    """What a model takes: tokens in a prompt, and how many token ids it knows; None where that is unknown."""

    max_length: int | None = None
    vocabulary: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class TaskData:
    """The sets of one task. `parameters` (JSON-able) says what it takes to build them again.

    input_ids, answer_ids: all token ids that prompts and answers of the task can have, in rising order, those of
    the sets at least. notes: what there is to warn of. readings: some test prompts as text, each with what the model
    reads of it; with a template all prompts of the main sets. template: the text around a user's text, where all
    prompts of the main sets have the same.
    """

    task: str
    parameters: dict[str, Any]
    patching: Dataset
    selection: Dataset
    test: Dataset
    ood: dict[str, Dataset]
    input_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    readings: tuple[tuple[str, tuple[int, ...]], ...] = ()
    template: Template | None = None

    def __post_init__(self) -> None:
        sets = (self.patching, self.selection, self.test, *self.ood.values())
        for name, tensors in (
            ("input_ids", [d.input_ids if d.mask is None else d.input_ids[d.mask] for d in sets]),
            ("answer_ids", [d.answer_ids for d in sets] + [d.choice_ids for d in sets if d.choice_ids is not None]),
        ):
            found = {token for tensor in tensors for token in tensor.unique().tolist() if token >= 0}
            object.__setattr__(self, name, tuple(sorted(found | set(getattr(self, name)))))

    @property
    def opening(self) -> tuple[int, ...]:
        """The token ids that all prompts of the main sets start with; none where prompts differ in length.

        At least the last token is no part of it.
        """
        sets = (self.patching, self.selection, self.test)
        if any(d.mask is not None or d.length != self.test.length for d in sets):
            return ()
        ids = torch.cat([d.input_ids for d in sets])  # (prompt, pos)
        return tuple(ids[0, : count_shared(ids[:, :-1])].tolist())


@dataclass(frozen=True)
class TaskSpec:
    """A task by name: `choices` maps each parameter to its values, the first being the default."""

    name: str
    description: str
    build: Callable[..., TaskData]
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def example(self, tokenizer: Tokenizer, **parameters: Any) -> tuple[str, str]:
        """A prompt of this task as text, and one of its answers, with all its tokens."""
        sizes = SplitSizes(patching=1, selection=1, test=1, ood=1)
        test = self.build(tokenizer, seed=0, sizes=sizes, **parameters).test
        prompt, answer = test.input_ids[0, : test.length - test.n_steps + 1], test.steps[0, :, 0]
        return str(tokenizer.decode(prompt.tolist())), str(tokenizer.decode(answer.tolist()))

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The parameters of every example worth showing: the default, and each other value alone."""
        return [{}, *({name: value} for name, values in self.choices.items() for value in values[1:])]
