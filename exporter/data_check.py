"""Whether a user's task can be worked on: what a data file holds, and whether the dense model can do the task.

A circuit of a task that the dense model fails at is a circuit of nothing, so the main job asks before it searches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.errors import InputError
from exporter.evaluate import Accuracy, evaluate_dense
from exporter.loading import LanguageModel
from exporter.tasks import DEFAULT_SIZES, Example, Limits, SplitSizes, Tokenizer, read_task_file

CHANCE = 0.05
"""What counts as chance where the answer is chosen from the whole vocabulary."""
_SHOWN = 4


@dataclass(frozen=True)
class Fitness:
    """The dense model's accuracy, against `chance`: the share that guessing among the choices gets right.

    `verdict` is `no` when nothing is right or the 95 % interval does not go above chance, `unclear` when it holds it.
    """

    dense: Accuracy
    chance: float

    @property
    def verdict(self) -> Literal["yes", "unclear", "no"]:
        """Whether the model can do the task."""
        low, high = self.dense.ci95
        return "no" if high <= self.chance or self.dense.accuracy == 0 else "unclear" if low <= self.chance else "yes"

    def __str__(self) -> str:
        low, high = self.dense.ci95
        return f"{self.dense.accuracy:.1%} [{low:.1%}, {high:.1%}], chance is {self.chance:.1%}"


@dataclass(frozen=True)
class Alignment:
    """One prompt as its tokens, after `padding` others; `answers` are the right ones at each of its last positions."""

    line: int
    padding: int
    tokens: list[str]
    answers: list[list[str]]
    choices: list[str]


@dataclass(frozen=True)
class DataReport:
    """What a data file holds and what will be used of it; `lengths` counts prompts by their tokens."""

    path: str
    model: str
    lines: int
    duplicates: int
    unused: int
    sets: dict[str, int]
    answers: dict[str, int]
    lengths: dict[int, int]
    special_tokens: list[str]
    examples: list[Alignment]
    accuracy: dict[str, Accuracy]
    fitness: Fitness

    def to_json(self) -> dict[str, Any]:
        """JSON-able data."""
        return asdict(self) | {"fit": self.fitness.verdict}


def find_limits(dense: CircuitModel) -> Limits:
    """What this model takes."""
    return Limits(max_length=dense.max_length, vocabulary=dense.W_E.shape[0])


def require_tokenizer(model: LanguageModel) -> Any:
    """The model's tokenizer; raises InputError where it has none."""
    if model.tokenizer is None:
        raise InputError(f"the model {model.name} has no tokenizer; put its tokenizer.json beside config.json")
    return model.tokenizer


def find_chance(dataset: Dataset) -> float:
    """The share that guessing gets right."""
    if dataset.choice_ids is None:
        return CHANCE
    right = (dataset.answer_ids >= 0).flatten(1).sum(dim=1)  # (prompt,)
    return float((right / (dataset.choice_ids >= 0).sum(dim=1)).mean())


def require_fitness(task: str, model: LanguageModel, dataset: Dataset, *, force: bool) -> tuple[str, ...]:
    """Refuse a task that the dense model fails at, unless forced; returns what there is to say, if anything."""
    fitness = Fitness(evaluate_dense(model.dense.answer_logits, dataset), find_chance(dataset))
    if fitness.verdict == "no" and not force:
        raise InputError(
            f"{model.name} cannot do the task {task}: its accuracy on the selection set is {fitness}; choose another "
            "model or other prompts (export-circuit check-data shows them), or go on with --force"
        )
    return describe_doubt(task, model, dataset, fitness.dense)


def describe_doubt(task: str, model: LanguageModel, dataset: Dataset, dense: Accuracy) -> tuple[str, ...]:
    """What there is to say of a task that the dense model has this accuracy at; nothing where it is above chance."""
    fitness = Fitness(dense, find_chance(dataset))
    doubt = f"{model.name} is not known to be better than chance at {task}: its accuracy is {fitness}"
    return () if fitness.verdict == "yes" else (doubt,)


def check_data(
    path: str | Path, model: LanguageModel, *, seed: int = 0, sizes: SplitSizes = DEFAULT_SIZES
) -> DataReport:
    """Read a data file for a model, and ask the model every set of it. Raises DataFileError with all problems."""
    tokenizer, dense = require_tokenizer(model), model.dense
    found = read_task_file(path, tokenizer, seed=seed, sizes=sizes, limits=find_limits(dense))
    data = found.data
    sets = {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}
    accuracy = {name: evaluate_dense(dense.answer_logits, dataset) for name, dataset in sets.items()}
    used = [example for examples in found.examples.values() for example in examples]
    return DataReport(
        path=str(path),
        model=model.name,
        lines=found.lines,
        duplicates=found.duplicates,
        unused=found.unused,
        sets={name: len(dataset) for name, dataset in sets.items()},
        answers=dict(Counter(_describe_answer(example) for example in used)),
        lengths=dict(sorted(Counter(len(example.input_ids) for example in used).items())),
        special_tokens=_decode(tokenizer, found.special),
        examples=[_align(tokenizer, example, data.test.length) for example in _pick(found.examples["test"])],
        accuracy=accuracy,
        fitness=Fitness(accuracy["selection"], find_chance(data.selection)),
    )


def _describe_answer(example: Example) -> str:
    if example.choice_ids:
        return f"one of {len(example.choice_ids)} choices"
    if len(example.steps) > 1:
        return f"{len(example.steps)} tokens"
    return "several right ones" if len(example.steps[0]) > 1 else "one token"


def _pick(examples: Sequence[Example]) -> list[Example]:
    """A few, from the shortest to the longest."""
    rows, last = sorted(examples, key=lambda example: len(example.input_ids)), len(examples) - 1
    return [rows[place] for place in sorted({last * i // (_SHOWN - 1) for i in range(_SHOWN)})]


def _align(tokenizer: Tokenizer, example: Example, length: int) -> Alignment:
    return Alignment(
        line=example.record.line,
        padding=length - len(example.input_ids),
        tokens=_decode(tokenizer, example.input_ids),
        answers=[_decode(tokenizer, step) for step in example.steps],
        choices=_decode(tokenizer, example.choice_ids),
    )


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.decode([token])) for token in ids]
