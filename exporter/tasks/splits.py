"""Which line of a data file goes into which set. No prompt is in two of them: that would be a leak.

Lines that are alike (see `twins`) are cut as one, unless their user named the sets. Lines without an answer are
patching lines. A file that names patching and test lines alone lends some of the former to the selection set.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.tasks.allotment import allot_groups
from exporter.tasks.encoding import Example, Ids
from exporter.tasks.lines import DataFileError, Problem, list_places, refuse_file
from exporter.tasks.records import SETS
from exporter.tasks.twins import Twin, group_twins

FEWEST_PROMPTS = 8
LENT = 0.1  # of the patching lines, at most: what becomes the selection set of a file that names none


def drop_duplicates(
    path: str | Path, examples: Sequence[Example]
) -> tuple[list[Example], list[tuple[Example, Example]]]:
    """Each prompt of a set once, and the repeated lines, each with the line that stays: one with an answer, if any.

    Raises DataFileError where a repeated prompt has other answers or choices.
    """
    first: dict[tuple[Ids, str | None], Example] = {}
    dropped, problems = [], []
    for example in sorted(examples, key=lambda example: not example.is_labelled):
        earlier = first.setdefault((example.prompt_ids, example.record.split), example)
        if earlier is example:
            continue
        if not example.is_labelled:
            dropped.append((example, earlier))
        elif (earlier.steps, set(earlier.choice_ids)) != (example.steps, set(example.choice_ids)):
            message = f"the prompt of {earlier.record.place} again, with another answer or other choices"
            one = f'keep one {earlier.record.place.noun}, with all right answers in "answers"'
            problems.append(Problem(example.record.place, f"{message}; {one}"))
        else:
            dropped.append((example, earlier))
    if problems:
        raise DataFileError(path, problems)
    stay = {example.record.place for example in first.values()}
    return [example for example in examples if example.record.place in stay], dropped


def check_classes(path: str | Path, examples: Sequence[Example]) -> None:
    """Raise DataFileError where only some lines have choices, or where all answers of a set are the same.

    Lines without an answer may do without choices, too.
    """
    choosing = [example for example in examples if example.choice_ids]
    answered = [example for example in examples if example.is_labelled]
    open_sets = {example.record.split for example in examples if not example.is_labelled}
    lacking = [example for example in answered if not example.choice_ids]
    if choosing and lacking:
        place = lacking[0].record.place
        message = f"no choices, but {choosing[0].record.place} has some; give them to every {place.noun}, or to none"
        refuse_file(path, message, place)
    groups: dict[str, Sequence[Example]] = {"file": answered}
    groups |= {f"set {name}": [e for e in answered if e.record.split == name] for name in SETS if name not in open_sets}
    for name, group in groups.items():
        if len(group) > 1 and len({example.steps for example in group}) == 1:
            answer, noun = group[0].record.answers[0], group[0].record.place.noun
            message = f"the {name} has one answer only, {answer!r}: nothing to tell apart; add {noun}s with others"
            refuse_file(path, message)


def cut_sets(
    path: str | Path, examples: Sequence[Example], twins: Sequence[Twin], seed: int, sizes: Mapping[str, int]
) -> dict[str, list[Example]]:
    """The examples of each set: patching, selection, test, and the unseen ones as `ood:<name>`."""
    groups: dict[str | None, list[int]] = {}
    for row, example in enumerate(examples):
        groups.setdefault(example.record.split, []).append(row)
    rng, free = random.Random(seed), groups.get(None, [])
    named = [examples[row].record.place for name in SETS for row in groups.get(name, [])]
    if named and free:
        message = f"no split, but {named[0]} has one; give it to all {named[0].noun}s but the ood ones, or to none"
        refuse_file(path, message, examples[free[0]].record.place)
    wanted = {name: sizes[name] for name in SETS}
    fewest = {name: min(FEWEST_PROMPTS, wanted[name]) for name in SETS}
    if named:
        _lend_selection(rng, examples, twins, groups, wanted["selection"])
        sets = {name: _draw(rng, groups.get(name, []), wanted[name]) for name in SETS}
        for name, rows in sets.items():
            if len(rows) < fewest[name]:
                message = f"the {name} set needs at least {fewest[name]} prompts, {len(rows)} {named[0].noun}s have it"
                refuse_file(path, f"{message}; add {named[0].noun}s")
    else:
        sets = _cut_free(path, examples, twins, _draw(rng, free, len(free)), wanted, fewest)
    sets |= {
        name: _draw(rng, groups[name], sizes["ood"])
        for name in sorted(str(key) for key in groups.keys() - {None, *SETS})
        for name in sorted(str(key) for key in groups.keys() - {None, *SETS})
    }
    return {name: [examples[row] for row in rows] for name, rows in sets.items()}


def _lend_selection(
    rng: random.Random,
    examples: Sequence[Example],
    twins: Sequence[Twin],
    groups: dict[str | None, list[int]],
    wanted: int,
) -> None:
    """Where no line is of the selection set, some of the patching lines are: with an answer, and like no other line."""
    if groups.get("selection"):
        return
    alike = {row for twin in twins for row in (twin.first, twin.second)}
    patching = groups.get("patching", [])
    fit = [row for row in patching if examples[row].is_labelled and row not in alike]
    lent = set(_draw(rng, fit, min(wanted, int(LENT * len(fit)))))
    if len(lent) >= FEWEST_PROMPTS:
        groups["selection"] = sorted(lent)
        groups["patching"] = [row for row in patching if row not in lent]


def describe_unlabelled(examples: Sequence[Example]) -> list[str]:
    """A note on lines that are patching lines because they have no answer, and not because their user said so."""
    places = [e.record.place for e in examples if e.record.split is None and not e.is_labelled]
    if not places:
        return []
    has = "has" if len(places) == 1 else "have"
    return [f"{list_places(places)} {has} no answer: used for patching alone, with the dense model as the teacher"]


def describe_unused(examples: Sequence[Example], sets: Mapping[str, Sequence[Example]]) -> list[str]:
    """A note on each set that takes fewer lines than the file has for it."""
    given, notes = Counter(example.record.split for example in examples), []
    if given["patching"] and (lent := sum(example.record.split == "patching" for example in sets["selection"])):
        given["patching"] -= lent
        notes.append(f"no line is of the set selection: {lent:,} of the set patching are, and are not learnt from")
    for name, rows in sets.items():
        if len(rows) < given[name]:
            more = f"; --{name}-prompts takes more" if name in SETS else ""
            notes.append(f"of {given[name]:,} lines of the set {name}, {len(rows):,} are used{more}")
    n_free = given[None]
    used = sum(example.record.split is None for rows in sets.values() for example in rows)
    if used < n_free:
        sizes = ", ".join(f"{name} {len(sets[name]):,}" for name in SETS)
        more = "--selection-prompts and --test-prompts take more"
        notes.append(f"of {n_free:,} lines {used:,} are used ({sizes}); {more}, or give each line its split")
    return notes


def _cut_free(
    path: str | Path,
    examples: Sequence[Example],
    twins: Sequence[Twin],
    order: Sequence[int],
    wanted: Mapping[str, int],
    fewest: Mapping[str, int],
) -> dict[str, list[int]]:
    """Cut rows, in an order that the seed decided, so that those which are alike stay together.

    Rows without an answer, and what is like them, go to patching beside its share of the others.

    Where the sets would be too small otherwise, chains such as `1 2` -> ` 3`, `1 2 3` -> ` 4` are cut apart, and
    `leaks` warns of them.
    """
    free = set(order)
    answered = [row for row in order if examples[row].is_labelled]
    groups: list[list[int]] = []
    sets: dict[str, list[int]] = {}
    for kinds in (("ids", "text", "answer"), ("ids", "text")):
        own = [twin for twin in twins if twin.kind in kinds and twin.first in free and twin.second in free]
        root = group_twins(len(examples), own)
        by_root: dict[int, list[int]] = {}
        for row in order:
            by_root.setdefault(root[row], []).append(row)
        unlabelled = {root[row] for row in free if not examples[row].is_labelled}
        groups = [group for first, group in by_root.items() if first not in unlabelled]
        beside = [row for row in order if root[row] in unlabelled]
        least = {**fewest, "patching": max(0, fewest["patching"] - len(beside))}
        for level in (False, True):
            sets = allot_groups(groups, wanted, least, level=level)
            sets["patching"] = [*sets["patching"], *beside][: wanted["patching"]]
            if all(len(sets[name]) >= fewest[name] for name in SETS):
                return sets
    name = next(name for name in SETS if len(sets[name]) < fewest[name])
    prompts = "different prompts" + ("" if len(answered) == len(order) else " with an answer")
    message = f"the {name} set needs at least {fewest[name]} prompts, {len(answered)} {prompts} give it"
    most = max(groups, key=len) if groups else []
    largest = [examples[row].record.place for row in sorted(most)]
    if len(largest) < 2:
        refuse_file(path, f"{message} {len(sets[name])}; add lines")
    refuse_file(
        path,
        f"{message} {len(sets[name])}, for those that are alike stay in one set, which leaves {len(groups)} groups "
        f"({list_places(largest)} are the same to the model, or but for white space, case and Unicode form); add other "
        "prompts, or give each its split",
    )


def _draw(rng: random.Random, rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, in an order that the seed decides."""
    return rng.sample(rows, min(most, len(rows)))
