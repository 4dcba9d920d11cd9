"""Variations of prompts: more of them to learn from, which nobody has answered (as in TinyBERT, arXiv 1909.10351)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.tasks.dataset import Dataset, count_shared

DROPPED = 0.15  # of the tokens of a prompt that loses some


def vary(prompts: Dataset, generator: torch.Generator) -> Dataset | None:
    """As many prompts without answer, made of those that there are; None where all have one length, or several steps.

    Half of them lose some of their tokens, the others go on with the end of another prompt. What all prompts begin and
    end with stays.
    """
    if prompts.mask is None or prompts.n_steps > 1:
        return None
    device, mask = prompts.input_ids.device, prompts.mask.cpu()
    rows = [ids[real] for ids, real in zip(prompts.input_ids.cpu(), mask, strict=True)]
    shortest = min(map(len, rows))
    opening = count_shared(torch.stack([row[:shortest] for row in rows]))
    ending = min(count_shared(torch.stack([row[-shortest:].flip(0) for row in rows])), shortest - opening)
    texts = [row[opening : len(row) - ending] for row in rows]
    input_ids, real = torch.zeros_like(prompts.input_ids, device="cpu"), torch.zeros_like(mask)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        other = texts[int(torch.randint(len(texts), (), generator=generator))]
        text = _vary_text(text, other, generator)[: prompts.length - opening - ending]
        varied = torch.cat([row[:opening], text, row[len(row) - ending :]])
        input_ids[index, prompts.length - len(varied) :] = varied
        real[index, prompts.length - len(varied) :] = True
    return replace(
        prompts,
        input_ids=input_ids.to(device),
        mask=real.to(device),
        answer_ids=torch.full_like(prompts.answer_ids, -1),
        labelled=torch.zeros(len(prompts), dtype=torch.bool, device=device),
    )


def _vary_text(text: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Some of a text's tokens, (token,), or its beginning and the end of another one."""
    if not len(text):
        return text
    if torch.rand((), generator=generator) < 0.5:
        kept = text[torch.rand(len(text), generator=generator) >= DROPPED]
        return kept if len(kept) else text
    own = int(torch.randint(1, len(text) + 1, (), generator=generator))
    theirs = int(torch.randint(len(other) + 1, (), generator=generator))
    return torch.cat([text[:own], other[theirs:]])


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
