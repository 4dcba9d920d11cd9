"""A task from a user's file of prompts and answers: read, tokenised, cut into disjoint sets, padded.

All sets have one length: shorter prompts are padded on the left, so that every answer stands at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.tasks.blanks import describe_odd_characters
from exporter.tasks.dataset import Dataset
from exporter.tasks.encoding import Encoder, Example, Ids
from exporter.tasks.leaks import Near, describe_leaks, find_near, refuse_leaks, sum_up_leaks
from exporter.tasks.lines import MOST_LINES, SUFFIXES, DataFileError, LineError, Problem
from exporter.tasks.records import SETS, Record, read_records
from exporter.tasks.splits import check_classes, cut_sets, describe_unlabelled, describe_unused, drop_duplicates
from exporter.tasks.task import MOST_READINGS, NO_LIMITS, Limits, SplitSizes, TaskData
from exporter.tasks.template import Template, find_template
from exporter.tasks.tokenizer import Tokenizer
from exporter.tasks.twins import find_twins


@dataclass(frozen=True, eq=False)
class FileTask:
    """What became of a file: its sets, the lines in them, and the lines that are in none.

    repeated: lines that are left out, each with the one that is used. near: lines that are nearly others.
    """

    data: TaskData
    examples: Mapping[str, Sequence[Example]]
    lines: int
    repeated: Sequence[tuple[Example, Example]]
    near: Sequence[Near]
    unused: int
    special: Ids
    doubts: Sequence[str] = ()

    @property
    def duplicates(self) -> int:
        """How many lines are left out, because an earlier one is the same."""
        return len(self.repeated)

    @property
    def warnings(self) -> list[Problem]:
        """What is not refused, but likely not meant."""
        return [*(Problem(None, text) for text in self.doubts), *describe_leaks(self.near)]


def is_file_task(task: str) -> bool:
    """Whether a task is given by a file and not by a name."""
    return task.lower().endswith(SUFFIXES) or os.sep in task


def read_task_file(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    sizes: SplitSizes,
    limits: Limits = NO_LIMITS,
    template: str | None = None,
) -> FileTask:
    """Read a data file into sets of at most these sizes.

    Lines with a split go there; the others are shuffled by the seed and cut into patching, selection and
    test, a quarter, a quarter and half of them where they are too few, lines that are alike into one; those
    without an answer all go to patching. `template` declares what stands around a user's text in all prompts but
    those of unseen sets (see `Template.declare`); else it is found, where it can be. Raises DataFileError, also for a
    prompt without that, and where lines put what is the same to the model into two sets.
    """
    declared = None if template is None else Template.declare(template)
    records, problems, sha256 = read_records(path)
    encoder = Encoder(tokenizer, limits)
    examples = _encode_records(path, encoder, records, problems, template=declared)
    pad = _find_pad(tokenizer, limits)
    distinct, repeated = drop_duplicates(path, examples)
    twins = find_twins(distinct, tokenizer, n_lead=len(encoder.lead), special={*encoder.lead, pad})
    refuse_leaks(path, distinct, twins)
    check_classes(path, distinct)
    wanted = sizes.fill(MOST_LINES)
    sets = cut_sets(path, distinct, twins, seed, wanted)
    near = find_near(distinct, twins, sets)
    doubts = (
        *encoder.describe_doubts(),
        *describe_odd_characters(tokenizer, records),
        *describe_unlabelled(distinct),
    )
    notes = (*doubts, *describe_unused(distinct, sets), *sum_up_leaks(near))
    parameters = {"path": str(path), "sha256": sha256, "seed": seed, "sizes": wanted}
    parameters |= {} if template is None else {"template": template}
    special = {"special_ids": list(encoder.lead), "pad_id": pad}
    return FileTask(
        data=_stack_task(
            Path(path).name, sets, parameters, special, notes=notes, template=declared or _find_template(sets)
        ),
        examples={name.removeprefix("ood:"): rows for name, rows in sets.items()},
        lines=len(examples),
        repeated=repeated,
        near=near,
        unused=len(distinct) - sum(map(len, sets.values())),
        special=encoder.lead,
        doubts=doubts,
    )


def _encode_records(
    path: str | Path,
    encoder: Encoder,
    records: Sequence[Record],
    problems: Sequence[Problem],
    *,
    template: Template | None,
) -> list[Example]:
    """All records as token ids. Raises DataFileError for those that cannot be, and for `problems` of lines before.

    template: what prompts are declared to be.
    """
    examples, problems = [], list(problems)
    for record in records:
        try:
            if template is not None:
                _require_template(template, record)
            examples.append(encoder.encode(record))
        except LineError as error:
            problems.append(Problem(record.place, str(error)))
    if problems:
        raise DataFileError(path, problems)
    return examples


def _stack_task(
    task: str,
    sets: Mapping[str, Sequence[Example]],
    parameters: Mapping[str, Any],
    special: Mapping[str, Any],
    *,
    notes: tuple[str, ...],
    template: Template | None,
) -> TaskData:
    """The sets as tensors, with the parameters that it takes to build them again."""
    stacked = stack_examples(sets, special["pad_id"])
    prompts = {name: len(dataset) for name, dataset in stacked.items()}
    read = sets["test"][:MOST_READINGS] if template is None else [row for name in SETS for row in sets[name]]
    return TaskData(
        task=task,
        parameters={**parameters, "prompts": prompts, **special},
        patching=stacked.pop("patching"),
        selection=stacked.pop("selection"),
        test=stacked.pop("test"),
        ood={name.removeprefix("ood:"): dataset for name, dataset in stacked.items()},
        notes=notes,
        readings=tuple(
            (example.record.prompt, example.prompt_ids) for example in read if isinstance(example.record.prompt, str)
        ),
        template=template,
    )


def _require_template(template: Template, record: Record) -> None:
    """Raise LineError for a prompt that is not the template, filled in; unseen sets may have other wordings."""
    if (record.split or "").startswith("ood:"):
        return
    misfit = template.describe_misfit(record.prompt) if isinstance(record.prompt, str) else "is token ids"
    if misfit is not None:
        raise LineError(f"the prompt {misfit}, as --template says; mend one of them")


def _find_template(sets: Mapping[str, Sequence[Example]]) -> Template | None:
    """The text around a user's text in all prompts of the main sets; None where some are given as tokens."""
    prompts = {name: [example.record.prompt for example in sets[name]] for name in SETS}
    texts = {name: [prompt for prompt in prompts[name] if isinstance(prompt, str)] for name in SETS}
    if texts != prompts:
        return None
    return find_template(texts["patching"], [*texts["selection"], *texts["test"]])


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
            torch.tensor([e.is_labelled for e in examples]),
        )

    return {name: stack(examples) for name, examples in sets.items()}


def _fill(ids: Ids, n: int) -> Ids:
    return ids + (-1,) * (n - len(ids))
