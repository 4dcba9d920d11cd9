"""What a task is, and how prompts become disjoint sets.

A task describes *spaces* of prompts: numbered, so that drawing without replacement is drawing numbers, sets
are disjoint by construction, and the largest possible set is known exactly. Prompts are put together from token
ids and then checked against the tokenizer's own reading of their text.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, Protocol

import torch

from exporter.dataset import Dataset
from exporter.errors import InputError


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks use."""

    bos_token_id: Any
    eos_token_id: Any

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Token ids of a text."""

    def decode(self, token_ids: list[int]) -> Any:
        """Text of token ids."""


@dataclass(frozen=True)
class SplitSizes:
    """Prompts in each set; `ood` is the size of every out-of-distribution set."""

    patching: int = 250
    selection: int = 250
    test: int = 500
    ood: int = 200

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"the {name} set cannot have {size!r} prompts; give a whole number from 1")


@dataclass(frozen=True)
class Limits:
    """What a model takes: tokens in a prompt, and how many token ids it knows; None where that is unknown."""

    max_length: int | None = None
    vocabulary: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class TaskData:
    """The sets of one task. `parameters` (JSON-able) says what it takes to build them again.

    input_ids, answer_ids: all token ids that prompts and answers of the task can have, in rising order, those of
    the sets at least.
    """

    task: str
    parameters: dict[str, Any]
    patching: Dataset
    selection: Dataset
    test: Dataset
    ood: dict[str, Dataset]
    input_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sets = (self.patching, self.selection, self.test, *self.ood.values())
        for name, tensors in (
            ("input_ids", [d.input_ids if d.mask is None else d.input_ids[d.mask] for d in sets]),
            ("answer_ids", [d.answer_ids for d in sets] + [d.choice_ids for d in sets if d.choice_ids is not None]),
        ):
            found = {token for tensor in tensors for token in tensor.unique().tolist() if token >= 0}
            object.__setattr__(self, name, tuple(sorted(found | set(getattr(self, name)))))

    @property
    def opening(self) -> tuple[int, ...]:
        """The token ids that all prompts of the main sets start with; none where prompts differ in length.

        At least the last token is no part of it.
        """
        sets = (self.patching, self.selection, self.test)
        if any(d.mask is not None or d.length != self.test.length for d in sets):
            return ()
        ids = torch.cat([d.input_ids for d in sets])  # (prompt, pos)
        alike = (ids == ids[0]).all(dim=0).tolist()
        n = alike.index(False) if False in alike else len(alike)
        return tuple(ids[0, : min(n, self.test.length - 1)].tolist())


@dataclass(frozen=True)
class TaskSpec:
    """A task by name: `choices` maps each parameter to its values, the first being the default."""

    name: str
    description: str
    build: Callable[..., TaskData]
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def example(self, tokenizer: Tokenizer, **parameters: Any) -> tuple[str, str]:
        """A prompt of this task as text, and one of its answers, with all its tokens."""
        sizes = SplitSizes(patching=1, selection=1, test=1, ood=1)
        test = self.build(tokenizer, seed=0, sizes=sizes, **parameters).test
        prompt, answer = test.input_ids[0, : test.length - test.n_steps + 1], test.steps[0, :, 0]
        return str(tokenizer.decode(prompt.tolist())), str(tokenizer.decode(answer.tolist()))

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The parameters of every example worth showing: the default, and each other value alone."""
        return [{}, *({name: value} for name, values in self.choices.items() for value in values[1:])]


@dataclass(frozen=True)
class Piece:
    """Text that stands in a prompt, with its token ids; the leading space belongs to it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One prompt and its right answers. `lead` special tokens stand before the text.

    The last `steps - 1` of the ids are tokens of the answer, too (teacher forcing).
    """

    text: str
    ids: tuple[int, ...]
    answers: tuple[int, ...]
    lead: int = 0
    steps: int = 1


class PromptSpace(Protocol):
    """All prompts of one kind, numbered within strata; sets take from the strata in turn."""

    @property
    def capacities(self) -> Sequence[int]:
        """How many prompts each stratum has."""

    def prompt(self, stratum: int, index: int) -> Prompt:
        """The prompt with this number, 0 <= index < capacities[stratum]."""

    @property
    def input_ids(self) -> set[int]:
        """All token ids that its prompts can have."""

    @property
    def answer_ids(self) -> set[int]:
        """All token ids that can be answers."""


def read_words(name: str) -> list[str]:
    """A bundled word list, e.g. `names` or `names_ood`."""
    return resources.files("exporter.tasks").joinpath("words", f"{name}.txt").read_text(encoding="utf-8").split()


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a text, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def read_pieces(tokenizer: Tokenizer, words: Sequence[str], *, tokens: int = 1) -> list[Piece]:
    """The words, each with a leading space, that have exactly this many tokens."""
    pieces = [Piece(f" {word}", encode_text(tokenizer, f" {word}")) for word in words]
    return [piece for piece in pieces if len(piece.ids) == tokens]


def require_words(task: str, kind: str, found: int, needed: int, known: int) -> None:
    """Refuse a tokenizer that too few words fit."""
    if found < needed:
        raise InputError(
            f"this tokenizer cannot express the task {task!r}: {found} of {known} {kind} align, "
            f"{needed} are needed; use a model with GPT-2's tokenizer, or build a Dataset from tensors"
        )


def collect_ids(pieces: Iterable[Piece]) -> set[int]:
    """The token ids of some pieces."""
    return {i for piece in pieces for i in piece.ids}


class Template:
    """A wording with slots such as `{name}`; a space before a slot belongs to what fills it."""

    def __init__(self, tokenizer: Tokenizer, wording: str) -> None:
        self.wording = wording
        self._parts: list[str | Piece] = []
        for part in re.split(r"( ?\{\w+\})", wording):
            if part.endswith("}"):
                self._parts.append(part.strip(" {}"))
            elif part:
                self._parts.append(Piece(part, encode_text(tokenizer, part)))

    def fill(self, pieces: Mapping[str, Piece]) -> Piece:
        """The wording with each slot filled; pieces without a slot are ignored."""
        filled = [pieces[part] if isinstance(part, str) else part for part in self._parts]
        return Piece("".join(p.text for p in filled), tuple(i for p in filled for i in p.ids))

    @property
    def ids(self) -> set[int]:
        """The token ids of the wording itself."""
        return {i for part in self._parts if isinstance(part, Piece) for i in part.ids}

    def has(self, slot: str) -> bool:
        """Whether the wording has this slot."""
        return slot in self._parts


def draw_distinct(rng: random.Random, capacities: Sequence[int], n: int, task: str) -> list[tuple[int, int]]:
    """`n` different (stratum, index) pairs, taken from the strata in turn so that every cut is balanced."""
    most = sum(capacities)
    if n > most:
        raise InputError(f"the task {task!r} has {most} distinct prompts of this kind, not {n}; ask for smaller sets")
    left = list(capacities)
    order: list[int] = []
    while len(order) < n:
        turn = [stratum for stratum, capacity in enumerate(left) if capacity]
        rng.shuffle(turn)
        for stratum in turn:
            left[stratum] -= 1
        order += turn
    counts = Counter(order[:n])
    draws = {stratum: rng.sample(range(capacities[stratum]), counts[stratum]) for stratum in sorted(counts)}
    return [(stratum, draws[stratum].pop()) for stratum in order[:n]]


def draw_prompts(tokenizer: Tokenizer, space: PromptSpace, n: int, *, seed: str, task: str) -> list[Prompt]:
    """`n` different prompts, each checked to be what the tokenizer makes of its own text."""
    rng = random.Random(seed)
    prompts = [space.prompt(*pair) for pair in draw_distinct(rng, space.capacities, n, task)]
    for prompt in prompts:
        if encode_text(tokenizer, prompt.text) != prompt.ids[prompt.lead :]:
            raise InputError(
                f"this tokenizer cannot express the task {task!r}: it splits {prompt.text!r} into other tokens "
                "than its words have alone; use a model with GPT-2's tokenizer"
            )
    return prompts


def stack_prompts(prompts: Sequence[Prompt]) -> Dataset:
    """Prompts of one length and one number of steps as a Dataset; answer rows are padded with -1."""
    most = max(len(prompt.answers) for prompt in prompts)
    ids = torch.tensor([prompt.ids for prompt in prompts])
    answers = torch.tensor([prompt.answers + (-1,) * (most - len(prompt.answers)) for prompt in prompts])
    if (forced := prompts[0].steps - 1) > 0:
        earlier = torch.full((len(prompts), forced, most), -1)  # (prompt, step, alternative)
        earlier[..., 0] = ids[:, -forced:]
        answers = torch.cat([earlier, answers[:, None]], dim=1)
    return Dataset(ids, answers)


def build_sets(
    tokenizer: Tokenizer,
    task: str,
    main: PromptSpace,
    ood: Mapping[str, PromptSpace],
    *,
    seed: int,
    sizes: SplitSizes,
    parameters: Mapping[str, Any],
) -> TaskData:
    """Draw all sets. They are disjoint: the main ones are cut from one draw, each other has its own space."""
    n = sizes.patching + sizes.selection + sizes.test
    prompts = draw_prompts(tokenizer, main, n, seed=f"{task}/{seed}", task=task)
    cut = sizes.patching, sizes.patching + sizes.selection
    return TaskData(
        task=task,
        parameters={"seed": seed, "sizes": asdict(sizes), **parameters},
        patching=stack_prompts(prompts[: cut[0]]),
        selection=stack_prompts(prompts[cut[0] : cut[1]]),
        test=stack_prompts(prompts[cut[1] :]),
        ood={
            name: stack_prompts(draw_prompts(tokenizer, space, sizes.ood, seed=f"{task}/{seed}/{name}", task=task))
            for name, space in ood.items()
        },
        input_ids=tuple(sorted({i for space in (main, *ood.values()) for i in space.input_ids})),
        answer_ids=tuple(sorted({i for space in (main, *ood.values()) for i in space.answer_ids})),
    )
