"""Leaks between the sets of a data file.

Prompts in two sets are refused where they are the same to the model, and warned of where they nearly are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.tasks.encoding import Example
from exporter.tasks.lines import DataFileError, Problem, list_places
from exporter.tasks.twins import Kind, Twin

_HOW: dict[Kind, str] = {
    "ids": "the model is given the same",
    "text": "alike but for white space, case or Unicode form",
    "answer": "the prompt of one is that of the other with its answer",
}
_SHOWN = 3


@dataclass(frozen=True)
class Near:
    """Two lines that are alike, the first being earlier; `sets` is where they are, None being no set."""

    first: Example
    second: Example
    kind: Kind
    sets: tuple[str | None, str | None]

    @property
    def leaks(self) -> bool:
        """Whether they are in two sets."""
        return self.sets[0] != self.sets[1] and None not in self.sets

    @property
    def how(self) -> str:
        """In which way they are alike."""
        return _HOW[self.kind]


def refuse_leaks(path: str | Path, examples: Sequence[Example], twins: Sequence[Twin]) -> None:
    """Raise DataFileError where the model would be given the same ids in two of the sets that lines name."""
    problems: dict[int, Problem] = {}
    for twin in twins:
        earlier, example = examples[twin.first], examples[twin.second]
        if twin.kind != "ids" or earlier.record.split == example.record.split:
            continue
        there, here = (e.record.split or "no named set" for e in (earlier, example))
        whole = earlier.prompt_ids == example.prompt_ids
        again = "again" if whole else "again, with an answer's first tokens in place as the model is given them"
        message = f"the prompt of {earlier.record.place} {again}, there in {there} and here in {here}: a leak"
        remedy = "take one of them out" if whole else "put both into one set, or take one out"
        problems.setdefault(twin.second, Problem(example.record.place, f"{message}; {remedy}"))
    if problems:
        raise DataFileError(path, list(problems.values()))


def find_near(examples: Sequence[Example], twins: Sequence[Twin], sets: Mapping[str, Sequence[Example]]) -> list[Near]:
    """The twins with the sets that they are in; a line that names its set counts as in it, also if it is not drawn."""
    where = {example.record.place: name for name, rows in sets.items() for example in rows}
    named = [example.record.split or where.get(example.record.place) for example in examples]
    return [
        Near(examples[twin.first], examples[twin.second], twin.kind, (named[twin.first], named[twin.second]))
        for twin in twins
    ]


def describe_leaks(near: Sequence[Near]) -> list[Problem]:
    """A warning for each line that is nearly one of another set."""
    first = {pair.second.record.place: pair for pair in reversed(near) if pair.leaks}
    return [
        Problem(
            place,
            f"nearly the prompt of {pair.first.record.place} ({pair.how}), there in {pair.sets[0]} and here in "
            f"{pair.sets[1]}: one set tells of the other; put both into one set, or take one out",
        )
        for place, pair in sorted(first.items(), key=lambda item: item[0].line)
    ]


def sum_up_leaks(near: Sequence[Near]) -> list[str]:
    """What to say of all leaks in a few lines: one for each way in which lines are alike."""
    notes = []
    for kind, how in _HOW.items():
        pairs = [pair for pair in near if pair.leaks and pair.kind == kind]
        if pairs:
            shown = ", ".join(
                f"{pair.first.record.place} ({pair.sets[0]}) and {pair.second.record.place} ({pair.sets[1]})"
                for pair in pairs[:_SHOWN]
            )
            more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            notes.append(f"prompts nearly stand in two sets ({how}): {shown}{more}; check-data lists them")
    return notes


def sum_up_near(near: Sequence[Near]) -> str:
    """How many lines are nearly others, and which."""
    places = list(dict.fromkeys(pair.second.record.place for pair in near))
    leaking = len({pair.second.record.place for pair in near if pair.leaks})
    kept = "in other sets than those" if leaking else "kept in one set with those"
    counted = f"{leaking} of them " if leaking and leaking < len(places) else ""
    return f"{len(places)} ({list_places(places)}), {counted}{kept}" if places else "0"
