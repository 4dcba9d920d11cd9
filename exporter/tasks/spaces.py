"""Spaces of prompts, and the disjoint sets that are drawn from them.

The prompts of a space are numbered, so that drawing without replacement is drawing numbers, sets are disjoint by
construction, and the largest possible set is known exactly. Prompts are put together from token ids and then checked
against the tokenizer's own reading of their text.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from exporter.errors import InputError
from exporter.tasks.dataset import Dataset
from exporter.tasks.prompts import Prompt
from exporter.tasks.task import MOST_READINGS, PATCHING, SplitSizes, TaskData
from exporter.tasks.tokenizer import Tokenizer, encode_text, find_lead


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
    """`n` different prompts, each checked to be what the tokenizer makes of its own text.

    Special tokens that the tokenizer puts before a text of its own accord replace those of the task.
    """
    rng = random.Random(seed)
    prompts = [space.prompt(*pair) for pair in draw_distinct(rng, space.capacities, n, task)]
    for prompt in prompts:
        if encode_text(tokenizer, prompt.text) != prompt.ids[prompt.lead :]:
            raise InputError(
                f"this tokenizer cannot express the task {task!r}: it splits {prompt.text!r} into other tokens "
                "than its words have alone; use a model with GPT-2's tokenizer"
            )
    if lead := find_lead(tokenizer):
        prompts = [replace(prompt, ids=lead + prompt.ids[prompt.lead :], lead=len(lead)) for prompt in prompts]
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
    wanted = sizes.fill(PATCHING)
    patching, selection = wanted["patching"], wanted["selection"]
    n = patching + selection + wanted["test"]
    prompts = draw_prompts(tokenizer, main, n, seed=f"{task}/{seed}", task=task)
    cut = patching, patching + selection
    lead = find_lead(tokenizer)
    return TaskData(
        task=task,
        parameters={"seed": seed, "sizes": wanted, **parameters},
        patching=stack_prompts(prompts[: cut[0]]),
        selection=stack_prompts(prompts[cut[0] : cut[1]]),
        test=stack_prompts(prompts[cut[1] :]),
        ood={
            name: stack_prompts(draw_prompts(tokenizer, space, sizes.ood, seed=f"{task}/{seed}/{name}", task=task))
            for name, space in ood.items()
        },
        input_ids=tuple(sorted({i for space in (main, *ood.values()) for i in space.input_ids})),
        answer_ids=tuple(sorted({i for space in (main, *ood.values()) for i in space.answer_ids})),
        readings=tuple((p.text, lead + p.ids[p.lead :]) for p in prompts[cut[1] :][:MOST_READINGS]),
    )
