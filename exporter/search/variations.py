"""Variations of prompts: more of them to learn from, which nobody has answered (as in TinyBERT, arXiv 1909.10351)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.tasks.dataset import Dataset, count_shared

DROPPED = 0.15  # of the tokens of a prompt that loses some

Frame = tuple[int, int]
"""How many tokens all prompts begin and end with: they are never varied."""


def find_frame(prompts: Dataset) -> Frame:
    """The frame of prompts that differ in length."""
    assert prompts.mask is not None
    rows = [ids[real] for ids, real in zip(prompts.input_ids, prompts.mask, strict=True)]
    shortest = min(map(len, rows))
    opening = count_shared(torch.stack([row[:shortest] for row in rows]))
    ending = count_shared(torch.stack([row[-shortest:].flip(0) for row in rows]))
    return opening, min(ending, shortest - opening)


def drop_tokens(prompts: Dataset, frame: Frame, generator: torch.Generator, share: float = DROPPED) -> Dataset:
    """The same prompts and answers without a share of the tokens; one that would lose its whole text loses nothing."""
    assert prompts.mask is not None
    mask, (opening, ending) = prompts.mask, frame
    place = mask.cumsum(1)  # from 1 on: (prompt, pos)
    text = mask & (place > opening) & (place <= mask.sum(1, keepdim=True) - ending)
    kept = text & (torch.rand(mask.shape, generator=generator) >= share).to(mask.device)
    kept = torch.where(kept.any(1, keepdim=True), mask & (kept | ~text), mask)
    order = kept.long().argsort(dim=1, stable=True)  # padding goes to the left
    mask = kept.gather(1, order)
    return replace(prompts, input_ids=prompts.input_ids.gather(1, order) * mask, mask=mask)


def vary(prompts: Dataset, generator: torch.Generator) -> Dataset | None:
    """As many prompts without answer, made of those that there are; None where all have one length, or several steps.

    Half of them lose some of their tokens, the others go on with the end of another prompt.
    """
    if prompts.mask is None or prompts.n_steps > 1:
        return None
    frame = find_frame(prompts)
    dropped, spliced = drop_tokens(prompts, frame, generator), _splice(prompts, frame, generator)
    assert dropped.mask is not None
    loses = (torch.rand(len(prompts), 1, generator=generator) < 0.5).to(dropped.mask.device)
    return replace(
        prompts,
        input_ids=torch.where(loses, dropped.input_ids, spliced[0]),
        mask=torch.where(loses, dropped.mask, spliced[1]),
        answer_ids=torch.full_like(prompts.answer_ids, -1),
        labelled=torch.zeros(len(prompts), dtype=torch.bool, device=prompts.input_ids.device),
    )


def _splice(prompts: Dataset, frame: Frame, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The beginning of each text and the end of another, in the frame: token ids and mask, (prompt, pos)."""
    assert prompts.mask is not None
    (opening, ending), length = frame, prompts.length
    rows = [ids[real] for ids, real in zip(prompts.input_ids.cpu(), prompts.mask.cpu(), strict=True)]
    texts = [row[opening : len(row) - ending] for row in rows]
    input_ids = torch.zeros(prompts.input_ids.shape, dtype=torch.long)
    mask = torch.zeros(prompts.mask.shape, dtype=torch.bool)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        other = texts[_draw(len(texts), generator)]
        own, theirs = 1 + _draw(max(1, len(text)), generator), _draw(len(other) + 1, generator)
        text = torch.cat([text[:own], other[theirs:]])[: length - opening - ending]
        varied = torch.cat([row[:opening], text, row[len(row) - ending :]])
        input_ids[index, length - len(varied) :], mask[index, length - len(varied) :] = varied, True
    return input_ids.to(prompts.input_ids.device), mask.to(prompts.mask.device)


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def join(first: Dataset, second: Dataset) -> Dataset:
    """The prompts of both, which have equal shapes; either may be without padding, choices or answers."""

    def both(name: str, missing: bool) -> Tensor | None:
        parts = [getattr(prompts, name) for prompts in (first, second)]
        like = next((part for part in parts if part is not None), None)
        if like is None:
            return None
        blank = [like.new_full((len(prompts), *like.shape[1:]), missing) for prompts in (first, second)]
        return torch.cat([none if part is None else part for part, none in zip(parts, blank, strict=True)])

    return Dataset(
        torch.cat([first.input_ids, second.input_ids]),
        torch.cat([first.answer_ids, second.answer_ids]),
        mask=both("mask", missing=True),
        choice_ids=both("choice_ids", missing=False),
        labelled=both("labelled", missing=True),
    )
