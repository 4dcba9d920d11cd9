"""Greater-than: after `The war lasted from the year 1732 to the year 17`, any of `33` ... `99` is right.

Years are two tokens, century and rest (Hanna et al., arXiv 2305.00586); those that a tokenizer knows as one token,
such as 1776, never occur. Prompts take every starting year equally often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exporter.errors import InputError
from exporter.tasks.prompts import Piece, Prompt, Template, collect_ids, read_pieces, read_words, require_words
from exporter.tasks.spaces import build_sets
from exporter.tasks.task import SplitSizes, TaskData
from exporter.tasks.tokenizer import Tokenizer, encode_text

NAME = "greater-than"
WORDING = "The {noun} lasted from the year {century}{year} to the year {century}"
UNSEEN_WORDINGS = (  # as many tokens as WORDING
    "One {noun} that began in {century}{year} ended in the year {century}",
    "The {noun} started in the year {century}{year} and ended in {century}",
)
CENTURIES = range(11, 18)
UNSEEN_CENTURIES = (10, 18, 20)
YEARS = range(2, 99)
FEWEST_NOUNS = 5
FEWEST_YEARS = 100


def build(tokenizer: Tokenizer, *, seed: int, sizes: SplitSizes) -> TaskData:
    """The sets of this task; out of distribution stand other wordings, nouns and centuries."""
    nouns, unseen = _read_nouns(tokenizer, "events"), _read_nouns(tokenizer, "events_ood")
    ends = _read_years(tokenizer)
    starts, late = _find_starts(tokenizer, ends, CENTURIES), _find_starts(tokenizer, ends, UNSEEN_CENTURIES)
    wording, others = Template(tokenizer, WORDING), [Template(tokenizer, w) for w in UNSEEN_WORDINGS]
    length = _count_tokens(wording)
    others = [template for template in others if _count_tokens(template) == length]
    spaces = {
        "nouns": _LaterYears([wording], unseen, starts, ends),
        "centuries": _LaterYears([wording], nouns, late, ends),
        **({"template": _LaterYears(others, nouns, starts, ends)} if others else {}),
    }
    parameters = {"wording": WORDING, "centuries": [CENTURIES.start, CENTURIES.stop - 1]}
    main = _LaterYears([wording], nouns, starts, ends)
    return build_sets(tokenizer, NAME, main, spaces, seed=seed, sizes=sizes, parameters=parameters)


def _read_nouns(tokenizer: Tokenizer, kind: str) -> list[Piece]:
    listed = read_words(kind)
    nouns = read_pieces(tokenizer, listed)
    require_words(NAME, "nouns", len(nouns), FEWEST_NOUNS, len(listed))
    return nouns


def _read_years(tokenizer: Tokenizer) -> list[Piece]:
    """The hundred two-digit tokens, in order."""
    pieces = [Piece(f"{year:02d}", encode_text(tokenizer, f"{year:02d}")) for year in range(100)]
    single = sum(len(piece.ids) == 1 for piece in pieces)
    if single < len(pieces):
        raise InputError(
            f"this tokenizer cannot express the task {NAME!r}: {single} of 100 two-digit numbers are one token, "
            "100 are needed; use a model with GPT-2's tokenizer"
        )
    return pieces


def _find_starts(tokenizer: Tokenizer, ends: Sequence[Piece], centuries: Iterable[int]) -> list[list[Piece]]:
    """For each two-digit year the centuries that stay a token of their own before it."""
    tokens = read_pieces(tokenizer, [str(century) for century in centuries])
    starts: list[list[Piece]] = []
    for year, end in enumerate(ends):
        apart = [c for c in tokens if encode_text(tokenizer, c.text + end.text) == c.ids + end.ids]
        starts.append(apart if year in YEARS else [])
    require_words(NAME, "years", sum(map(len, starts)), FEWEST_YEARS, len(YEARS) * len(list(centuries)))
    return starts


def _count_tokens(template: Template) -> int:
    """Tokens of a wording whose slots take one token each."""
    return len(template.fill(dict.fromkeys(("noun", "century", "year"), Piece("", (0,)))).ids)


class _LaterYears:
    """Prompts of some wordings, in strata by starting year."""

    def __init__(
        self, wordings: Sequence[Template], nouns: Sequence[Piece], starts: list[list[Piece]], ends: list[Piece]
    ) -> None:
        self._wordings, self._nouns, self._starts, self._ends = wordings, nouns, starts, ends

    @property
    def capacities(self) -> Sequence[int]:
        return [len(self._wordings) * len(self._nouns) * len(centuries) for centuries in self._starts]

    @property
    def input_ids(self) -> set[int]:
        centuries = (century for of_a_year in self._starts for century in of_a_year)
        pieces = collect_ids([*self._nouns, *centuries, *self._ends])
        return pieces.union(*(wording.ids for wording in self._wordings))

    @property
    def answer_ids(self) -> set[int]:
        return collect_ids(self._ends)

    def prompt(self, stratum: int, index: int) -> Prompt:
        rest, wording = divmod(index, len(self._wordings))
        century, noun = divmod(rest, len(self._nouns))
        pieces = {
            "noun": self._nouns[noun],
            "century": self._starts[stratum][century],
            "year": self._ends[stratum],
        }
        filled = self._wordings[wording].fill(pieces)
        answers = tuple(end.ids[0] for end in self._ends[stratum + 1 :])
        return Prompt(filled.text, filled.ids, answers)
