"""Whether a task is fit for a search: what a data file holds, and whether the dense model can do the task.

A circuit for a task that the dense model fails at explains nothing, so the main job checks before it searches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.errors import InputError
from exporter.evidence import bag_of_words
from exporter.evidence.evaluate import evaluate_dense
from exporter.loading.load import LanguageModel
from exporter.metrics.statistics import Accuracy
from exporter.network.model import CircuitModel
from exporter.tasks import FILE_SIZES, Example, Limits, SplitSizes, TaskData, Tokenizer, read_task_file
from exporter.tasks.dataset import Dataset
from exporter.tasks.leaks import sum_up_near

CHANCE = 0.05
"""The accuracy that counts as chance where the answer is chosen from the whole vocabulary."""
ENOUGH = 0.01  # below the model's accuracy, of what needs no model
MOST_CHECKED = 5000  # prompts of a set that a bag of words is tried on
_SHOWN = 4  # example prompts in a report


@dataclass(frozen=True)
class Fitness:
    """The dense model's accuracy, and `chance`, the expected accuracy of guessing among the choices.

    `verdict`: `no` if no answer is right, or the 95 % interval does not reach above chance; `unclear` if the interval
    contains chance; else `yes`.
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
    """One prompt of the data file as tokens.

    padding: the number of padding tokens on the left. answers: the right tokens at each answer position. choices: the
    tokens that the answer is chosen from, if any.
    """

    line: int
    padding: int
    tokens: list[str]
    answers: list[list[str]]
    choices: list[str]


@dataclass(frozen=True)
class NearLines:
    """Two near-duplicate lines of a data file, their sets (None for an unused line), and in what they are alike."""

    lines: tuple[int, int]
    sets: tuple[str | None, str | None]
    how: str


@dataclass(frozen=True)
class DataReport:
    """What a data file holds, and which of its lines will be used.

    sets: prompts by set. unlabelled: patching prompts without a right answer. answers: prompts by kind of answer.
    lengths: prompts by number of tokens. accuracy: the dense model's on the prompts with an answer, by set. repeated:
    duplicate lines that are left out, each with the line that is used. near: pairs of near-duplicates; near_summary:
    the same as text. warnings: likely mistakes that are no errors.
    """

    path: str
    model: str
    lines: int
    duplicates: int
    unused: int
    sets: dict[str, int]
    unlabelled: int
    answers: dict[str, int]
    lengths: dict[int, int]
    special_tokens: list[str]
    examples: list[Alignment]
    accuracy: dict[str, Accuracy]
    fitness: Fitness
    repeated: list[tuple[int, int]]
    near: list[NearLines]
    near_summary: str
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able data, with the verdict as `fit`."""
        return asdict(self) | {"fit": self.fitness.verdict}


def find_limits(dense: CircuitModel) -> Limits:
    """The model's longest prompt, in tokens, and the size of its vocabulary."""
    return Limits(max_length=dense.max_length, vocabulary=dense.W_E.shape[0])


def require_tokenizer(model: LanguageModel) -> Any:
    """The model's tokenizer. Raises InputError: it has none."""
    if model.tokenizer is None:
        lacks = model.lacks or "has no tokenizer; put its tokenizer.json beside config.json"
        raise InputError(f"the model {model.name} {lacks}")
    return model.tokenizer


def find_chance(dataset: Dataset) -> float:
    """The expected accuracy of guessing: mean share of right choices, or CHANCE for a set without choices."""
    if dataset.choice_ids is None:
        return CHANCE
    right = (dataset.answer_ids >= 0).flatten(1).sum(dim=1)  # (prompt,)
    return float((right / (dataset.choice_ids >= 0).sum(dim=1)).mean())


def require_fitness(task: str, model: LanguageModel, dataset: Dataset, *, force: bool) -> tuple[str, ...]:
    """The warnings of `describe_doubt`. Raises InputError: the verdict is `no`, and `force` is not given."""
    fitness = Fitness(evaluate_dense(model.dense.answer_logits, dataset), find_chance(dataset))
    if fitness.verdict == "no" and not force:
        raise InputError(
            f"{model.name} cannot do the task {task}: its accuracy on the selection set is {fitness}; choose another "
            "model or other prompts (export-circuit check-data shows them), or go on with --force"
        )
    return describe_doubt(task, model, dataset, fitness.dense)


def describe_doubt(task: str, model: LanguageModel, dataset: Dataset, dense: Accuracy) -> tuple[str, ...]:
    """A warning if the dense model, with this accuracy, is not clearly above chance at the task; else none."""
    fitness = Fitness(dense, find_chance(dataset))
    doubt = f"{model.name} is not known to be better than chance at {task}: its accuracy is {fitness}"
    return () if fitness.verdict == "yes" else (doubt,)


def describe_shortcut(
    name: str, data: TaskData, accuracy: Mapping[str, Accuracy], tokenizer: Tokenizer
) -> tuple[str, ...]:
    """A warning if a bag of words does the job as well as the model, less ENOUGH; none without scikit-learn.

    accuracy: of the model, by set. Held against each other on the labelled patching and selection prompts.
    """
    if not bag_of_words.is_installed():
        return ()
    sets = {
        name: prompts.take_labelled()[:MOST_CHECKED]
        for name, prompts in (("patching", data.patching), ("selection", data.selection))
        if prompts.is_labelled.any()
    }
    n = sum(map(len, sets.values()))
    dense = sum(accuracy[name].accuracy * len(prompts) for name, prompts in sets.items()) / max(1, n)
    found = bag_of_words.cross_validate(list(sets.values()), tokenizer)
    if found is None or found.accuracy < dense - ENOUGH:
        return ()
    low, high = found.ci95
    return (
        f"a bag of words does the job: TF-IDF with logistic regression gets {found.accuracy:.1%} "
        f"[{low:.1%}, {high:.1%}] of the {n} labelled patching and selection prompts, cross-validated, and {name} "
        f"{dense:.1%}; `export-circuit compare` holds them against a circuit",
    )


def check_data(
    path: str | Path,
    model: LanguageModel,
    *,
    seed: int = 0,
    sizes: SplitSizes = FILE_SIZES,
    template: str | None = None,
) -> DataReport:
    """Read a data file, with a declared template (`read_task_file`), and measure a model's accuracy on each set.

    Raises InputError: the model has no tokenizer. Raises DataFileError: the file has problems; it lists them all.
    """
    tokenizer, dense = require_tokenizer(model), model.dense
    found = read_task_file(path, tokenizer, seed=seed, sizes=sizes, limits=find_limits(dense), template=template)
    data = found.data
    sets = {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}
    answered = {name: dataset.take_labelled() for name, dataset in sets.items() if dataset.is_labelled.any()}
    accuracy = {name: evaluate_dense(dense.answer_logits, dataset) for name, dataset in answered.items()}
    used = [example for examples in found.examples.values() for example in examples]
    return DataReport(
        path=str(path),
        model=model.name,
        lines=found.lines,
        duplicates=found.duplicates,
        unused=found.unused,
        sets={name: len(dataset) for name, dataset in sets.items()},
        unlabelled=data.patching.n_unlabelled,
        answers=dict(Counter(_describe_answer(example) for example in used)),
        lengths=dict(sorted(Counter(len(example.input_ids) for example in used).items())),
        special_tokens=_decode(tokenizer, found.special),
        examples=[_align(tokenizer, example, data.test.length) for example in _pick(found.examples["test"])],
        accuracy=accuracy,
        fitness=Fitness(accuracy["selection"], find_chance(data.selection)),
        repeated=[(example.record.line, known.record.line) for example, known in found.repeated],
        near=[NearLines((pair.first.record.line, pair.second.record.line), pair.sets, pair.how) for pair in found.near],
        near_summary=sum_up_near(found.near),
        warnings=[*map(str, found.warnings), *describe_shortcut(model.name, data, accuracy, tokenizer)],
    )


def _describe_answer(example: Example) -> str:
    if not example.is_labelled:
        return "none"
    if example.choice_ids:
        return f"one of {len(example.choice_ids)} choices"
    if len(example.steps) > 1:
        return f"{len(example.steps)} tokens"
    return "several right ones" if len(example.steps[0]) > 1 else "one token"


def _pick(examples: Sequence[Example]) -> list[Example]:
    """At most _SHOWN examples, evenly spaced by length, the shortest and the longest among them."""
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
