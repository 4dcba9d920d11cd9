"""A task from a user's file of prompts and answers: read, tokenised, cut into disjoint sets, padded.

All sets have one length: shorter prompts are padded on the left, so that every answer stands at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from exporter.dataset import Dataset
from exporter.tasks.encoding import Encoder, Example, Ids
from exporter.tasks.lines import SUFFIXES, DataFileError, LineError, Problem
from exporter.tasks.records import read_records
from exporter.tasks.splits import check_classes, cut_sets, drop_duplicates
from exporter.tasks.task import NO_LIMITS, Limits, SplitSizes, TaskData, Tokenizer


@dataclass(frozen=True, eq=False)
class FileTask:
    """What became of a file: its sets, the lines in them, and the lines that are in none."""

    data: TaskData
    examples: Mapping[str, Sequence[Example]]
    lines: int
    duplicates: int
    unused: int
    special: Ids


def is_file_task(task: str) -> bool:
    """Whether a task is given by a file and not by a name."""
    return task.endswith(SUFFIXES) or os.sep in task


def read_task_file(
    path: str | Path, tokenizer: Tokenizer, *, seed: int = 0, sizes: SplitSizes, limits: Limits = NO_LIMITS
) -> FileTask:
    """Read a data file into sets of at most these sizes.

    Lines with a split go there; the others are shuffled by the seed and cut into patching, selection and
    test, a quarter, a quarter and half of them where they are too few. Raises DataFileError.
    """
    records, problems, sha256 = read_records(path)
    encoder = Encoder(tokenizer, limits)
    examples = []
    for record in records:
        try:
            examples.append(encoder.encode(record))
        except LineError as error:
            problems.append(Problem(record.line, str(error)))
    if problems:
        raise DataFileError(path, problems)
    distinct = drop_duplicates(path, examples)
    check_classes(path, distinct)
    sets = cut_sets(path, distinct, seed, sizes)
    pad = _find_pad(tokenizer, limits)
    stacked = stack_examples(sets, pad)
    data = TaskData(
        task=Path(path).name,
        parameters={
            "path": str(path),
            "sha256": sha256,
            "seed": seed,
            "sizes": asdict(sizes),
            "prompts": {name: len(dataset) for name, dataset in stacked.items()},
            "special_ids": list(encoder.lead),
            "pad_id": pad,
        },
        patching=stacked.pop("patching"),
        selection=stacked.pop("selection"),
        test=stacked.pop("test"),
        ood={name.removeprefix("ood:"): dataset for name, dataset in stacked.items()},
    )
    return FileTask(
        data=data,
        examples={name.removeprefix("ood:"): rows for name, rows in sets.items()},
        lines=len(examples),
        duplicates=len(examples) - len(distinct),
        unused=len(distinct) - sum(map(len, sets.values())),
        special=encoder.lead,
    )


def _find_pad(tokenizer: Tokenizer, limits: Limits) -> int:
    """The tokenizer's padding or end-of-text token, where the model knows it, and else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None and (limits.vocabulary is None or token < limits.vocabulary):
            return int(token)
    return 0


def stack_examples(sets: Mapping[str, Sequence[Example]], pad: int) -> dict[str, Dataset]:
    """Each set as a Dataset; all have the length and the answer positions of the longest example of any."""
    rows = [example for examples in sets.values() for example in examples]
    length = max(len(example.input_ids) for example in rows)
    n_steps = max(len(example.steps) for example in rows)
    n_answers = max(len(step) for example in rows for step in example.steps)
    n_choices = max(len(example.choice_ids) for example in rows)

    def stack(examples: Sequence[Example]) -> Dataset:
        lengths = torch.tensor([len(example.input_ids) for example in examples])
        answers = [
            [_fill((), n_answers)] * (n_steps - len(e.steps)) + [_fill(step, n_answers) for step in e.steps]
            for e in examples
        ]
        steps = torch.tensor(answers)  # (prompt, step, alternative)
        return Dataset(
            torch.tensor([(pad,) * (length - len(e.input_ids)) + e.input_ids for e in examples]),
            steps if n_steps > 1 else steps[:, 0],
            torch.arange(length) >= length - lengths[:, None],  # (prompt, pos)
            torch.tensor([_fill(e.choice_ids, n_choices) for e in examples]) if n_choices else None,
        )

    return {name: stack(examples) for name, examples in sets.items()}


def _fill(ids: Ids, n: int) -> Ids:
    return ids + (-1,) * (n - len(ids))
