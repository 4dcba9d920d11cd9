"""Indirect object identification: `When Mary and John went to the store, John gave a drink to` - ` Mary`.

The right answer is the name that occurs once (Wang et al., arXiv 2211.00593). All wordings here have as many tokens
as each other with GPT-2's tokenizer, so that a Dataset can mix them; with another tokenizer those of the most common
length are used. `{x}` and `{y}` are the names in order, `{s}` is the one that is repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from exporter.errors import InputError
from exporter.tasks.prompts import Piece, Prompt, Template, collect_ids, read_pieces, read_words, require_words
from exporter.tasks.spaces import build_sets
from exporter.tasks.task import SplitSizes, TaskData
from exporter.tasks.tokenizer import Tokenizer

NAME = "ioi"
PAPER_WORDING = "Then, {x} and {y} went to the {place}. {s} gave a {object} to"
WORDINGS = (
    PAPER_WORDING,
    "When {x} and {y} went to the {place}, {s} gave a new {object} to",
    "After {x} and {y} met at the {place}, {s} gave a {object} back to",
    "While {x} and {y} were still at the {place}, {s} offered a {object} to",
    "Once {x} and {y} left the {place}, {s} decided to give a {object} to",
    "Yesterday {x} and {y} worked at the {place}, and {s} sold a {object} to",
    "Today {x} and {y} had lunch near the {place}. {s} sent a {object} to",
    "Last week {x} and {y} visited the old {place}. {s} showed a {object} to",
)
UNSEEN_WORDINGS = (
    "At the {place}, {x} ran into {y}, so {s} lent a {object} to",
    "The {place} was where {x} and {y} argued until {s} finally threw a {object} to",
    "Friends since school, {x} and {y} shared a {object}, then {s} handed it to",
    "Before {x} or {y} could even leave the {place}, {s} mailed a {object} to",
)
FEWEST_NAMES = 20
FEWEST_FILLERS = 5
FEWEST_WORDINGS = 3


def build(tokenizer: Tokenizer, *, seed: int, sizes: SplitSizes, template: Literal["all", "paper"] = "all") -> TaskData:
    """The sets of this task; out of distribution stand other wordings and other names.

    `template="all"` mixes all wordings, each with the repeated name in second (ABBA) and in first place (BABA);
    `"paper"` is the one BABA wording of arXiv 2412.15750.
    """
    names, unseen = _read_names(tokenizer, "names"), _read_names(tokenizer, "names_ood")
    fillers = {slot: _read_fillers(tokenizer, kind) for slot, kind in (("place", "places"), ("object", "objects"))}
    single = template == "paper"
    wordings = _keep_common_length(
        tokenizer, (PAPER_WORDING,) if single else WORDINGS, fewest=1 if single else FEWEST_WORDINGS
    )
    length = _count_tokens(wordings[0])
    others = [t for w in UNSEEN_WORDINGS if _count_tokens(t := Template(tokenizer, w)) == length]
    orders = (True,) if single else (False, True)
    spaces = {
        "names": _Indirect(unseen, fillers, wordings, orders),
        **({"template": _Indirect(names, fillers, others, orders)} if others else {}),
    }
    parameters = {"template": template, "wordings": [wording.wording for wording in wordings]}
    main = _Indirect(names, fillers, wordings, orders)
    return build_sets(tokenizer, NAME, main, spaces, seed=seed, sizes=sizes, parameters=parameters)


def _read_names(tokenizer: Tokenizer, kind: str) -> list[Piece]:
    listed = read_words(kind)
    names = read_pieces(tokenizer, listed)
    require_words(NAME, "names", len(names), FEWEST_NAMES, len(listed))
    return names


def _read_fillers(tokenizer: Tokenizer, kind: str) -> list[Piece]:
    listed = read_words(kind)
    fillers = read_pieces(tokenizer, listed)
    require_words(NAME, kind, len(fillers), FEWEST_FILLERS, len(listed))
    return fillers


def _count_tokens(template: Template) -> int:
    """Tokens of a wording whose slots take one token each."""
    one = Piece("", (0,))
    return len(template.fill(dict.fromkeys(("x", "y", "s", "place", "object"), one)).ids)


def _keep_common_length(tokenizer: Tokenizer, wordings: Sequence[str], *, fewest: int) -> list[Template]:
    templates = [Template(tokenizer, wording) for wording in wordings]
    lengths = [_count_tokens(template) for template in templates]
    common, count = Counter(lengths).most_common(1)[0]
    if count < fewest:
        raise InputError(
            f"this tokenizer cannot express the task {NAME!r}: {count} of {len(wordings)} wordings have one "
            f"length, {fewest} are needed; try the parameter template='paper'"
        )
    return [template for template, length in zip(templates, lengths, strict=True) if length == common]


class _Indirect:
    """Prompts of some wordings, in strata by wording and order of names."""

    def __init__(
        self,
        names: Sequence[Piece],
        fillers: dict[str, list[Piece]],
        wordings: Sequence[Template],
        orders: Sequence[bool],
    ) -> None:
        self._names, self._fillers = names, fillers
        self._strata = [(wording, repeats_first) for wording in wordings for repeats_first in orders]

    @property
    def capacities(self) -> Sequence[int]:
        return [len(self._names) * (len(self._names) - 1) * self._count_fillers(w) for w, _ in self._strata]

    @property
    def input_ids(self) -> set[int]:
        fillers = (piece for pieces in self._fillers.values() for piece in pieces)
        return (self.answer_ids | collect_ids(fillers)).union(*(wording.ids for wording, _ in self._strata))

    @property
    def answer_ids(self) -> set[int]:
        return collect_ids(self._names)

    def prompt(self, stratum: int, index: int) -> Prompt:
        wording, repeats_first = self._strata[stratum]
        rest, first = divmod(index, len(self._names))
        rest, second = divmod(rest, len(self._names) - 1)
        x, y = self._names[first], self._names[second + (second >= first)]
        pieces = {"x": x, "y": y, "s": x if repeats_first else y}
        for slot, words in self._fillers.items():
            if wording.has(slot):
                rest, choice = divmod(rest, len(words))
                pieces[slot] = words[choice]
        filled = wording.fill(pieces)
        return Prompt(filled.text, filled.ids, (y if repeats_first else x).ids)

    def _count_fillers(self, wording: Template) -> int:
        count = 1
        for slot, words in self._fillers.items():
            count *= len(words) if wording.has(slot) else 1
        return count
