"""Variations of prompts: more of them to learn from, which nobody has answered (as in TinyBERT, arXiv 1909.10351).

Where the dense model teaches, `exchange` says with which words: a network that is healed on some hundred names else
learns these, and no others. Where right answers are taught, `vary` leaves the words and changes how they follow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.tasks.dataset import Dataset, count_shared

DROPPED = 0.15  # of the tokens of a prompt that loses some
FREQUENT = 0.05  # of the prompts: a token that more of them have belongs to the task's wordings
LIKE = 32  # tokens with the nearest embeddings: of these a token's substitute is drawn

_CHUNK = 256  # tokens whose nearest ones are found at once

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


def exchange(prompts: Dataset, W_E: Tensor, generator: torch.Generator) -> Dataset:
    """As many prompts without answer, in which each rare token is another one, the same wherever it occurs.

    What stays are tokens that many prompts have (`FREQUENT`), and those at positions where all have the same. Others
    are drawn anew for each prompt from the `LIKE` tokens whose embeddings, (vocab, d_model), have the largest cosine
    with the token's own, itself among them.
    """
    ids = prompts.input_ids.cpu()
    real = torch.ones_like(ids, dtype=torch.bool) if prompts.mask is None else prompts.mask.cpu()
    tokens, number = ids.unique(return_inverse=True)  # number: (prompt, pos), into tokens
    held = torch.zeros(len(ids), len(tokens), dtype=torch.long).scatter_add_(1, number, real.long()) > 0
    rare = held.sum(0) <= FREQUENT * len(ids)
    varies = real & rare[number] & ((ids != ids[:1]).any(0) | ~real.all(0))
    like = _find_like(W_E, tokens).cpu()
    drawn = torch.randint(like.shape[1], held.shape, generator=generator)  # of a token in a prompt
    others = like[number, drawn.gather(1, number)]
    return _without_answers(prompts, torch.where(varies, others, ids).to(prompts.input_ids.device), prompts.mask)


def _find_like(W_E: Tensor, tokens: Tensor) -> Tensor:
    """The tokens whose embeddings are nearest to those of some: (token, neighbour)."""
    units = torch.nn.functional.normalize(W_E.detach().float(), dim=-1)
    parts = [units[part] @ units.T for part in tokens.to(units.device).split(_CHUNK)]
    return torch.cat([part.topk(min(LIKE, len(units))).indices for part in parts])


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
    mask = torch.where(loses, dropped.mask, spliced[1])
    return _without_answers(prompts, torch.where(loses, dropped.input_ids, spliced[0]), mask)


def _without_answers(prompts: Dataset, input_ids: Tensor, mask: Tensor | None) -> Dataset:
    """Prompts made of others, whose answers are not theirs."""
    none = torch.full_like(prompts.answer_ids, -1)
    labelled = torch.zeros(len(prompts), dtype=torch.bool, device=input_ids.device)
    return replace(prompts, input_ids=input_ids, mask=mask, answer_ids=none, labelled=labelled)


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
