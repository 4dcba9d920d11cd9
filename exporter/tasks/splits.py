"""Which line of a data file goes into which set. No prompt is in two of them: that would be a leak."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from exporter.tasks.encoding import Example, Ids
from exporter.tasks.lines import DataFileError, Problem
from exporter.tasks.records import SETS
from exporter.tasks.task import SplitSizes

FEWEST_PROMPTS = 8


def drop_duplicates(path: str | Path, examples: Sequence[Example]) -> list[Example]:
    """Each prompt once; one that stands in two sets, or has two answers, is a problem."""
    first: dict[Ids, Example] = {}
    problems = []
    for example in examples:
        known, line = first.setdefault(example.prompt_ids, example), example.record.line
        if known.record.split != example.record.split:
            there, here = (e.record.split or "no named set" for e in (known, example))
            message = f"the prompt of line {known.record.line} again, there in {there} and here in {here}: a leak"
            problems.append(Problem(line, f"{message}; take one of them out"))
        elif (known.steps, set(known.choice_ids)) != (example.steps, set(example.choice_ids)):
            message = f"the prompt of line {known.record.line} again, with another answer or other choices"
            problems.append(Problem(line, f'{message}; keep one line, with all right answers in "answers"'))
    if problems:
        raise DataFileError(path, problems)
    return list(first.values())


def check_classes(path: str | Path, examples: Sequence[Example]) -> None:
    """All lines choose or none does, and in each set there is something to tell apart."""
    choosing = [example for example in examples if example.choice_ids]
    if choosing and len(choosing) < len(examples):
        line = next(example.record.line for example in examples if not example.choice_ids)
        message = f"no choices, but line {choosing[0].record.line} has some; give them to every line, or to none"
        raise DataFileError(path, [Problem(line, message)])
    groups: dict[str, Sequence[Example]] = {"file": examples}
    groups |= {f"set {name}": [e for e in examples if e.record.split == name] for name in SETS}
    for name, group in groups.items():
        if len(group) > 1 and len({example.steps for example in group}) == 1:
            answer = group[0].record.answers[0]
            message = f"the {name} has one answer only, {answer!r}: nothing to tell apart; add lines with others"
            raise DataFileError(path, [Problem(None, message)])


def cut_sets(path: str | Path, examples: Sequence[Example], seed: int, sizes: SplitSizes) -> dict[str, list[Example]]:
    """The examples of each set: patching, selection, test, and the unseen ones as `ood:<name>`."""
    groups: dict[str | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.record.split, []).append(example)
    rng, free = random.Random(seed), groups.get(None, [])
    named = [example for name in SETS for example in groups.get(name, [])]
    if named and free:
        message = (
            f"no split, but line {named[0].record.line} has one; give it to all lines but the ood ones, or to none"
        )
        raise DataFileError(path, [Problem(free[0].record.line, message)])
    wanted = {name: size for name, size in asdict(sizes).items() if name in SETS}
    if named:
        sets = {name: _draw(rng, groups.get(name, []), wanted[name]) for name in SETS}
    else:
        sets = _cut_free(rng, free, wanted)
    for name, rows in sets.items():
        if len(rows) < (needed := min(FEWEST_PROMPTS, wanted[name])):
            have = f"{len(rows)} lines have it" if named else f"{len(free)} different prompts give it {len(rows)}"
            message = f"the {name} set needs at least {needed} prompts, {have}; add lines"
            raise DataFileError(path, [Problem(None, message)])
    return sets | {
        name: _draw(rng, groups[name], sizes.ood) for name in sorted(str(key) for key in groups.keys() - {None, *SETS})
    }


def _cut_free(rng: random.Random, rows: Sequence[Example], wanted: Mapping[str, int]) -> dict[str, list[Example]]:
    """A quarter for patching, a quarter for selection, the rest for test, none with more than is wanted."""
    left = _draw(rng, rows, len(rows))
    sets = {}
    for name, most in (("patching", len(rows) // 4), ("selection", len(rows) // 4), ("test", len(rows))):
        size = min(wanted[name], most)
        sets[name], left = left[:size], left[size:]
    return sets


def _draw(rng: random.Random, rows: Sequence[Example], most: int) -> list[Example]:
    """At most so many of the rows, in an order that the seed decides."""
    return rng.sample(rows, min(most, len(rows)))
