"""Prompts that are the same to the model, or to a reader: standing in two sets, one gives the other's answer away.

An answer of several tokens is asked for with its first tokens in place (teacher forcing), so that one line is several
prompts: `Count 5 then` -> ` one two` is also `Count 5 then one` -> ` two`. Lines are compared by all their prompts. Two
lines that share a prompt at all share one that is the whole prompt of either: looking up whole prompts is enough.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from exporter.tasks.encoding import Example
from exporter.tasks.tokenizer import Tokenizer

Kind = Literal["ids", "text", "answer"]
"""How two lines are alike: the model is given the same ids; the same text but for white space, case and Unicode form;
one's prompt is the other's with its answer behind it."""

_Prompt = tuple[int, Any]  # the row, and its prompt as ids or text
_Whole = tuple[int, Any, int, int]  # the row, prompt and answer, and between which lengths another's prompt may end

_NO_SHAPE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


@dataclass(frozen=True)
class Twin:
    """Two examples that are alike, as indices; `first` stands earlier in the file."""

    first: int
    second: int
    kind: Kind


def fold_text(text: str) -> tuple[str, ...]:
    """A text without what a reader does not see: white space is one space, case and Unicode forms are folded.

    A text with characters of no width has two forms: without them, and with a space for each.
    """
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _NO_SHAPE.sub("", text).replace("\u2800", " ")  # the blank of Braille
    shown = text.isprintable()
    hidden = set() if shown else {c for c in text if not c.isspace() and unicodedata.category(c) in ("Cc", "Cf")}
    forms = [text.translate({ord(c): put for c in hidden}) for put in (["", " "] if hidden else [""])]
    return tuple(dict.fromkeys(" ".join(form.split()) for form in forms))


def find_twins(
    examples: Sequence[Example], tokenizer: Tokenizer, *, n_lead: int, special: Collection[int]
) -> list[Twin]:
    """The pairs that are alike: each example with the first one like it in every set that lines name.

    n_lead: how many ids stand before each text of the tokenizer's own accord. special: those, and others that may stand
    before given ids without being of their text, such as padding.
    """
    kinds: dict[tuple[int, int], Kind] = {}

    def add(kind: Kind, prompts: Sequence[_Prompt], wholes: Iterable[_Whole]) -> None:
        for one, other in _look_up(examples, prompts, wholes):
            kinds.setdefault((min(one, other), max(one, other)), kind)

    prompts = [(row, example.prompt_ids) for row, example in enumerate(examples)]
    add("ids", prompts, [(row, e.input_ids, len(e.prompt_ids), len(e.input_ids)) for row, e in enumerate(examples)])
    starts, forced, answered = [], [], []
    for row, example in enumerate(examples):
        start, whole = _read_texts(example, tokenizer, n_lead, special)
        forms = [form for form in fold_text(start) if form]
        shortest = min(map(len, forms), default=0)
        starts += [(row, form) for form in forms]
        forced += [(row, form, len(form), len(form)) for form in forms]
        for form in fold_text(whole):
            answered.append((row, form, len(form), len(form)))
            if len(example.steps) > 1 and shortest:
                forced.append((row, form, shortest, len(form) - 1))
    add("text", starts, forced)
    ends = [(row, (*e.input_ids, token)) for row, e in enumerate(examples) for token in e.steps[-1]]
    add("answer", starts, answered)
    add("answer", prompts, [(row, ids, len(ids), len(ids)) for row, ids in ends])
    return [Twin(*pair, kind) for pair, kind in sorted(kinds.items())]


def group_twins(n: int, twins: Iterable[Twin]) -> list[int]:
    """For each of n examples the first one of its group: those that twins hold together (union-find)."""
    first = list(range(n))

    def find(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]  # path halving: the next search is shorter
            row = first[row]
        return row

    for twin in twins:
        one, other = find(twin.first), find(twin.second)
        first[max(one, other)] = min(one, other)
    return [find(row) for row in range(n)]


def _look_up(
    examples: Sequence[Example], prompts: Sequence[_Prompt], wholes: Iterable[_Whole]
) -> Iterator[tuple[int, int]]:
    """Pairs of rows: a whole begins with the prompt of the second one. Of each named set only the first such row."""
    rows: dict[Any, dict[str | None, int]] = {}
    for row, prompt in prompts:
        rows.setdefault(prompt, {}).setdefault(examples[row].record.split, row)
    lengths = sorted({len(prompt) for prompt in rows})
    for row, whole, shortest, longest in wholes:
        for length in lengths[bisect_left(lengths, shortest) : bisect_right(lengths, longest)]:
            yield from ((row, other) for other in rows.get(whole[:length], {}).values() if other != row)


def _read_texts(example: Example, tokenizer: Tokenizer, n_lead: int, special: Collection[int]) -> tuple[str, str]:
    """The prompt's text without special tokens before it, and that with the answer behind it."""
    prompt, ids = example.record.prompt, example.prompt_ids
    answer = example.record.answers[0] if example.is_labelled else ""
    start = next((index for index, token in enumerate(ids) if token not in special), 0)
    is_text = isinstance(prompt, str) and start == n_lead
    text = prompt if isinstance(prompt, str) and is_text else str(tokenizer.decode(list(ids[start:])))
    if isinstance(answer, str):
        return text, text + answer
    return text, str(tokenizer.decode([*ids[start:], *(step[0] for step in example.steps)]))
