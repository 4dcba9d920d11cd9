"""Training prompts for the bundled checkpoint, made up so that the tasks' own words stay unseen.

Names are capitalised words out of the vocabulary, acronym words are a capital and a random tail, repeated sequences
are random tokens. Wordings are put together from parts, and many of them garbled with random words, so that a word
between the slots may be any word. What the tasks test with (their names, their acronym words, the nouns, centuries and
wordings of their out-of-distribution sets, also each word that only those wordings say) is left out: see `HeldOut`.
Each step's batch depends on the seed and the step alone, so that a resumed run sees the batches that the uninterrupted
one would have seen.
"""

from __future__ import annotations

import itertools
import random
import string
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporter.tasks import acronym, greater_than, ioi
from exporter.tasks.prompts import Piece, Template, read_words

IOI_OPENERS = (
    "When", "After", "While", "Once", "As", "Since", "Then,", "Later,", "Yesterday", "Today", "Last week", "Last night",
    "Because", "Afterwards,", "In the morning", "One day", "This time", "On Monday",
)  # fmt: skip
IOI_MEETINGS = (
    "{x} and {y} went to the {place}", "{x} and {y} met at the {place}", "{x} and {y} were at the {place}",
    "{x} and {y} were still at the {place}", "{x} and {y} left the {place}", "{x} and {y} worked at the {place}",
    "{x} and {y} had lunch near the {place}", "{x} and {y} visited the old {place}", "{x} and {y} got to the {place}",
    "{x} and {y} walked home from the {place}", "{x} and {y} had a lot of fun at the {place}",
    "{x} saw {y} at the {place}", "{x} took {y} to the {place}", "{x} was at the {place} with {y}",
    "{x} called {y} from the {place}", "{x} and {y} found a {object}", "both {x} and {y} came in",
    "{x} danced with {y}", "{x} or {y} had to pay", "{x}, like {y}, waited by the {place}",
)  # fmt: skip
IOI_PLACES_FIRST = (
    "In the {place},", "Near the {place},", "Outside the {place},", "Inside the {place},", "Behind the {place},",
    "By the {place},", "From the {place},", "On the way to the {place},", "Not far from the {place},",
    "In this {place}", "Around the old {place}", "There is a {place}, and", "This {place} was full, but",
    "The {place} was quiet, and",
)  # fmt: skip
IOI_PAIRS = (
    "{x} and {y} met", "{x} and {y} had lunch", "{x} and {y} danced all night", "{x} and {y} sat down", "{x} saw {y}",
    "{x} helped {y}", "{x} came across {y}", "{x} bumped against {y}", "{x} looked up at {y}", "{x} walked past {y}",
    "{x} sat down beside {y}", "{x} waited for {y}", "{x} stood behind {y}", "{x} talked with {y}",
    "{x}, with {y}, sang", "{x} fell over {y}", "{x} got away from {y}", "both {x} and {y} came in",
    "{x} told {y} a story",
)  # fmt: skip
IOI_SUBJECTS = (
    "The {place} is the one which {x} and {y} liked", "The {place} is what {x} and {y} looked for",
    "The {place} which {x} and {y} had found", "The {place} is why {x} and {y} fought",
    "This {place} pleased {x} and {y}", "The {place} opened as {x} and {y} came", "The {place} was new to {x} and {y}",
    "A {place} made {x} laugh about {y}", "The {place} was not what {x} or {y} wanted",
    "Our {place} was closed while {x} and {y} slept", "The {place} is how {x} came across {y}",
    "My {place} was full of people for {x} and {y}",
)  # fmt: skip
IOI_LINKS = (" when", " because", " while", " as", " till", " once", " after", ",", ".", " and", ", and", " but")
IOI_LATE_GIFTS = (
    "{s} quickly gave a {object} to", "{s} gladly sold a {object} to", "{s} never brought the {object} to",
    "{s} soon sent a {object} to", "{s} at last offered a {object} to", "{s} later showed a {object} to",
    "{s} left a {object} for", "{s} pulled a {object} from", "{s} sang to", "{s} paid",
    "{s} carried a {object} over to",
)  # fmt: skip
IOI_JOINTS = (",", ".", ", and", ". Then", ". Later", ";", ", but", ". Soon")
IOI_GIFTS = (
    "{s} gave a {object} to", "{s} gave a new {object} to", "{s} gave a {object} back to", "{s} offered a {object} to",
    "{s} decided to give a {object} to", "{s} sold a {object} to", "{s} sent a {object} to", "{s} showed a {object} to",
    "{s} brought the {object} to", "{s} wanted to talk to", "{s} said hello to", "{s} passed the old {object} to",
    "{s} told a long story to", "{s} smiled at", "{s} was angry with", "{s} bought a {object} for",
)  # fmt: skip
ACRONYM_OPENERS = ("The", "A", "This", "Our", "My", "Every", "In the", "By the", "On a", "")
ACRONYM_BRACKETS = ("(", "(", "(", '"', "<", "{", "/")
YEAR_WORDINGS = (
    "From {century}{year} till {century}",
    "The {noun} went on from the year {century}{year} till the year {century}",
    "In {century}{year} came the {noun}, which was over by {century}",
    "The long {noun} of {century}{year} was over in the year {century}",
    "Between the year {century}{year} and the year {century}",
)
YEAR_NOUNS = (
    "The {noun}", "Our {noun}", "This {noun}", "The long {noun}", "A {noun}", "My old {noun}", "Then the {noun}",
    "Last of all, the {noun}",
)  # fmt: skip
YEAR_STARTS = (
    "held from", "lasted from", "is dated", "opened in", "came in the year", "was there from", "which came in",
    "was new in the year", "went on from the year", "left in", "got to us in the year", "of the year",
)  # fmt: skip
YEAR_ENDS = (
    "to", "till", "to the year", "and closed in", "and was over by", "till the year", "and was gone in the year",
    "but closed in", ", closed by the year", "and left in the year",
)  # fmt: skip
PUNCTUATION = (",", ".", ";", ":", "!", "?", " -", "...")
USUAL_LATENESS = 10  # the likeliest end is this many years after the start
SLOTS = ("x", "y", "s", "place", "object", "noun", "century", "year")
MOST_COMPOSED = 4000  # ioi wordings of one kind
LENGTH = 16  # of task prompts at most; shorter ones are padded on the right
REPEATED_LENGTH = 32
LONGEST_PERIOD = 12
READ_OF_REPETITION = 12  # places in each repeated sequence


@dataclass(frozen=True)
class HeldOut:
    """What training never shows: tokens of all the tasks' names, acronym words, and unseen nouns and centuries.

    `wordings` are the tokens that the tasks' unseen wordings say between their slots. Those that training's own
    wordings say as well are shown there; no random draw takes any of them.
    """

    names: frozenset[int]
    words: frozenset[tuple[int, ...]]
    nouns: frozenset[int]
    centuries: frozenset[int]
    wordings: frozenset[int]

    @property
    def tokens(self) -> frozenset[int]:
        """What no random draw of a single word may take."""
        return self.names | self.nouns | self.centuries | self.wordings


def read_held_out(tokenizer: Any) -> HeldOut:
    """Collect the held-out tokens from the tasks' word lists."""

    def ids(words: list[str]) -> list[tuple[int, ...]]:
        return [tuple(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words]

    unseen = (*ioi.UNSEEN_WORDINGS, *greater_than.UNSEEN_WORDINGS, acronym.UNSEEN_WORDING)
    acronyms = [word.capitalize() for word in read_words("acronym") + read_words("acronym_ood")]
    return HeldOut(
        names=frozenset(itertools.chain(*ids(read_words("names") + read_words("names_ood")))),
        words=frozenset(ids(acronyms)),
        nouns=frozenset(itertools.chain(*ids(read_words("events_ood")))),
        centuries=frozenset(itertools.chain(*ids([str(century) for century in greater_than.UNSEEN_CENTURIES]))),
        wordings=frozenset(itertools.chain(*(Template(tokenizer, wording).ids for wording in unseen))),
    )


@dataclass(frozen=True)
class Batch:
    """Rows of token ids with the places where the next token is known.

    input_ids: (row, pos). rows, positions: (loss,) where to read the model. targets: (loss,) next tokens, or -1 where
    `years` (row of later years, (100,) probabilities) holds the answer instead.
    """

    input_ids: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    years: Tensor


class TrainingData:
    """Everything prepared once for a tokenizer: word pools and tokenised wordings."""

    def __init__(self, tokenizer: Any) -> None:
        self.held_out = read_held_out(tokenizer)
        self._pad = int(tokenizer.eos_token_id)
        texts = {i: str(tokenizer.decode([i])) for i in range(len(tokenizer))}
        plain = {i: text for i, text in texts.items() if text.isascii() and text.strip().isalpha()}
        self._names = [
            i
            for i, text in plain.items()
            if text[0] == " " and text[1:2].isupper() and text[2:].islower() and len(text) > 3
            if i not in self.held_out.tokens
        ]
        self._tails = [i for i, text in plain.items() if text.islower() and text[0] != " "]
        self._nouns = [i for i, text in plain.items() if text[0] == " " and text[1:].islower() and len(text) > 4]
        self._nouns = [i for i in self._nouns if i not in self.held_out.tokens]
        self._anything = [i for i in range(len(tokenizer)) if i not in self.held_out.tokens and i != self._pad]
        self.shapes = [_read_shape(texts[i]) for i in range(len(tokenizer))]
        marks = [i for i, text in texts.items() if text in PUNCTUATION]
        heads = [i for i, text in plain.items() if text[0].isupper() and text[1:].islower() and len(text) > 1]
        heads = [i for i in heads if i not in self.held_out.tokens]
        self._fillers = {_read_shape(" word"): self._nouns, _read_shape("Word"): heads, _read_shape(","): marks}

        def one(text: str) -> int:
            (token,) = tokenizer.encode(text, add_special_tokens=False)
            return int(token)

        self._capitals = [(one(f" {letter}"), one(letter)) for letter in string.ascii_uppercase]
        self.year_tokens = torch.tensor([one(f"{year:02d}") for year in range(100)])
        everyday = [one(f" {century}") for century in greater_than.CENTURIES]
        others = [one(f" {number}") for number in range(21, 100)]
        self._centuries = everyday, others
        self._places = [Piece("", (one(f" {word}"),)) for word in read_words("places")]
        self._objects = [Piece("", (one(f" {word}"),)) for word in read_words("objects")]
        self._events = [one(f" {word}") for word in read_words("events")]
        pairs = [f"{place} {pair}" for place, pair in itertools.product(IOI_PLACES_FIRST, IOI_PAIRS)]
        names_first = [f"{opener} {meeting}" for opener, meeting in itertools.product(IOI_OPENERS, IOI_MEETINGS)]
        gifts, links = IOI_GIFTS + IOI_LATE_GIFTS, IOI_JOINTS + IOI_LINKS
        self._ioi = [
            [t for w in _compose(starts, joints, gifts) if _count_tokens(t := Template(tokenizer, w)) <= LENGTH]
            for starts, joints in ((names_first, IOI_JOINTS), (pairs, links), (list(IOI_SUBJECTS), links))
        ]
        self._ioi_task = [Template(tokenizer, wording) for wording in ioi.WORDINGS]
        self._years_task = Template(tokenizer, greater_than.WORDING)
        spans = [
            f"{noun} {start} {{century}}{{year}}{'' if end[0] == ',' else ' '}{end} {{century}}"
            for noun, start, end in itertools.product(YEAR_NOUNS, YEAR_STARTS, YEAR_ENDS)
        ]
        self._years = [t for w in (*YEAR_WORDINGS, *spans) if _count_tokens(t := Template(tokenizer, w)) <= LENGTH]
        self._openers = [tuple(tokenizer.encode(opener, add_special_tokens=False)) for opener in ACRONYM_OPENERS]
        self._brackets = [one(f" {bracket}") for bracket in ACRONYM_BRACKETS]

    def list_frame_tokens(self) -> list[int]:
        """Tokens with a meaning of their own: years, letters, and all that the wordings say between their slots."""
        tokens = {self._pad, *self.year_tokens.tolist(), *self._brackets}
        tokens.update(itertools.chain(*self._capitals), itertools.chain(*self._openers))
        for template in [*itertools.chain(*self._ioi), *self._ioi_task, *self._years, self._years_task]:
            tokens.update(template.fill(dict.fromkeys(SLOTS, Piece("", ()))).ids)
        return sorted(tokens)

    def _garble(self, rng: random.Random, ids: list[int]) -> list[int]:
        """Replace, drop and add words between the slots, which are the negative ids; at most `LENGTH` tokens remain.

        A word gives way to one of its own shape. Replaced are few words or all of them; the last token mostly stays.
        """
        share, garbled = rng.random(), []
        for place, token in enumerate(ids):
            among = self._fillers.get(self.shapes[token]) if token >= 0 else None
            if among is None or rng.random() > share * (0.3 if place == len(ids) - 1 else 1):
                garbled.append(token)
                continue
            added = [rng.choice(self._nouns)] * (rng.random() < 0.2)
            kept = [] if rng.random() < 0.15 and place < len(ids) - 1 else [rng.choice(among)]
            garbled += added + kept
        while len(garbled) > LENGTH:
            garbled.pop(rng.choice([i for i, token in enumerate(garbled[:-1]) if token >= 0]))
        return garbled

    def _ioi_prompt(self, rng: random.Random, garbled: float) -> tuple[list[int], int]:
        x, y = rng.sample(self._names, 2)
        repeats_first = rng.random() < 0.5
        template = rng.choice(self._ioi_task if rng.random() < 0.4 else rng.choice(self._ioi))
        slots = {"x": Piece("", (-1,)), "y": Piece("", (-2,)), "s": Piece("", (-1 if repeats_first else -2,))}
        filled = template.fill({**slots, "place": rng.choice(self._places), "object": rng.choice(self._objects)})
        ids = self._garble(rng, list(filled.ids)) if rng.random() < garbled else filled.ids
        return [{-1: x, -2: y}.get(token, token) for token in ids], y if repeats_first else x

    def _acronym_prompt(self, rng: random.Random) -> tuple[list[int], int]:
        plain = rng.random() < 0.5
        opener, bracket = (
            (self._openers[0], self._brackets[0]) if plain else (rng.choice(self._openers), rng.choice(self._brackets))
        )
        ids, letters = [self._pad, *opener], []
        for _ in range(3):
            spaced, letter = rng.choice(self._capitals)
            tail = rng.choice(self._tails)
            while (spaced, tail) in self.held_out.words:
                tail = rng.choice(self._tails)
            ids += [spaced, tail]
            letters.append(letter)
        return [*ids, bracket, *letters[:2]], letters[2]

    def _year_prompt(self, rng: random.Random, garbled: float) -> tuple[list[int], Tensor]:
        year = rng.randrange(0, 99)
        century = rng.choice(self._centuries[rng.random() < 0.5])
        noun = Piece("", (rng.choice(self._events if rng.random() < 0.5 else self._nouns),))
        template = self._years_task if rng.random() < 0.25 else rng.choice(self._years)
        filled = template.fill({"century": Piece("", (-1,)), "year": Piece("", (-2,)), "noun": noun})
        ids = self._garble(rng, list(filled.ids)) if rng.random() < garbled else filled.ids
        slots = {-1: century, -2: int(self.year_tokens[year])}
        late = (torch.arange(100) - year).clamp(min=0).float()
        target = late * torch.exp(-late / USUAL_LATENESS)
        return [slots.get(token, token) for token in ids], target / target.sum()

    def make_task_batch(
        self, seed: int, step: int, *, n_ioi: int, n_acronym: int, n_years: int, garbled: float
    ) -> Batch:
        """Prompts of the three tasks, each read at its last position; `garbled` is a share of ioi and greater-than."""
        rng = random.Random(f"{seed}/{step}/tasks")
        known = [self._ioi_prompt(rng, garbled) for _ in range(n_ioi)] + [
            self._acronym_prompt(rng) for _ in range(n_acronym)
        ]
        years = [self._year_prompt(rng, garbled) for _ in range(n_years)]
        prompts = [ids for ids, _ in known] + [ids for ids, _ in years]
        padded = [ids + [self._pad] * (LENGTH - len(ids)) for ids in prompts]
        return Batch(
            input_ids=torch.tensor(padded),
            rows=torch.arange(len(prompts)),
            positions=torch.tensor([len(ids) - 1 for ids in prompts]),
            targets=torch.tensor([answer for _, answer in known] + [-1] * n_years),
            years=torch.stack([target for _, target in years]),
        )

    def make_repeated_batch(self, seed: int, step: int, *, n: int) -> Batch:
        """Random tokens repeated with a random period, read at some places of the repetitions."""
        rng = random.Random(f"{seed}/{step}/repeated")
        ids, rows, positions = [], [], []
        for row in range(n):
            period = rng.randint(4, LONGEST_PERIOD)
            once = rng.sample(self._anything, period)
            ids.append([once[i % period] for i in range(REPEATED_LENGTH)])
            rows += [row] * READ_OF_REPETITION
            positions += sorted(rng.sample(range(period, REPEATED_LENGTH - 1), READ_OF_REPETITION))
        input_ids = torch.tensor(ids)
        rows_, positions_ = torch.tensor(rows), torch.tensor(positions)
        return Batch(input_ids, rows_, positions_, input_ids[rows_, positions_ + 1], torch.empty(0, 100))


def _compose(starts: list[str], joints: tuple[str, ...], gifts: tuple[str, ...]) -> list[str]:
    """At most `MOST_COMPOSED` wordings of these parts, mixed."""
    composed = [f"{start}{joint} {gift}" for start, joint, gift in itertools.product(starts, joints, gifts)]
    random.Random(0).shuffle(composed)
    return composed[:MOST_COMPOSED]


def _count_tokens(template: Template) -> int:
    """Tokens of a wording whose slots take one token each."""
    return len(template.fill(dict.fromkeys(SLOTS, Piece("", (0,)))).ids)


def _read_shape(text: str) -> str:
    """What can be seen of a token without knowing it: a space before it, and the kind of its first letter."""
    first = text.strip()[:1]
    kinds = {"upper": first.isupper(), "lower": first.islower(), "digit": first.isdigit(), "mark": first.isascii()}
    kind = next((name for name, is_kind in kinds.items() if first and is_kind), "other")
    return f"space {kind}" if text[:1] == " " else kind
