"""Single prompts for a report: what both models make of them, and where the circuit's heads look.

They are chosen among all held-out prompts by the KL from the dense model: the worst ones, and others from there to the
best at even ranks, so that the list shows the failures and what is usual. Everything is computed when the circuit is
made, since it takes the dense model, and kept in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from exporter.evidence.evaluate import AnswerLogits
from exporter.evidence.shown import SCALE, Guess, Reading, ShownAttention, ShownHead, ShownPrompt
from exporter.network.model import CircuitModel
from exporter.network.patterns import HeadPattern, read_patterns
from exporter.tasks.dataset import Dataset

Decode = Callable[[list[int]], str]

N_WORST, N_OTHERS = 5, 5
N_GUESSES = 5  # likeliest tokens of each model
N_ANSWERS = 6  # right answers that are listed
MOST_TOKENS = 400  # of a prompt: those before are left out
MOST_POSITIONS, MOST_HEADS = 48, 24  # of an attention pattern


def show_prompts(
    dense: AnswerLogits,
    circuit: AnswerLogits,
    sets: Mapping[str, Dataset],
    kl: Mapping[str, Tensor],
    decode: Decode,
) -> list[ShownPrompt]:
    """Some of all prompts, the worst first. `kl` has each set's KL by prompt, (prompt,), in nats."""
    places = [(name, row) for name, dataset in sets.items() for row in range(len(dataset))]
    values = torch.cat([kl[name] for name in sets])
    order = values.argsort(descending=True, stable=True).tolist()
    shown = []
    for rank in choose_ranks(len(order)):
        name, row = places[order[rank]]
        prompt = sets[name].take(torch.tensor([row]))
        shown.append(_show(dense, circuit, prompt, decode, name, rank + 1, len(order), float(values[order[rank]])))
    return shown


def choose_ranks(n: int) -> list[int]:
    """Ranks from 0, of n: the first few, and as many others from there to the last one, evenly."""
    rest = range(N_WORST, n)
    others = [rest[round(i * (len(rest) - 1) / (N_OTHERS - 1))] for i in range(N_OTHERS)] if len(rest) else []
    return sorted({*range(min(n, N_WORST)), *others})


def write_tokens(decode: Decode, ids: list[int]) -> list[str]:
    """Each token as text. Some tokenizers drop a first token's space, so that each is decoded behind the one before."""
    return [
        decode([token]) if place == 0 else write_after(decode, ids[place - 1], token) for place, token in enumerate(ids)
    ]


def write_after(decode: Decode, before: int, token: int) -> str:
    """A token as text, as it stands behind another one."""
    lead, both = decode([before]), decode([before, token])
    return both[len(lead) :] if both.startswith(lead) and len(both) > len(lead) else decode([token])


@torch.inference_mode()
def _show(
    dense: AnswerLogits,
    circuit: AnswerLogits,
    prompt: Dataset,
    decode: Decode,
    name: str,
    rank: int,
    of: int,
    kl: float,
) -> ShownPrompt:
    logits = [f(prompt.input_ids, prompt.mask, prompt.n_steps) for f in (dense, circuit)]  # (1, step, vocab) each
    predicted = [prompt.predict(found) for found in logits]  # (1, step) each
    counted = prompt.counted[0].nonzero()[:, 0].tolist()
    # of an answer of several tokens, the first at which the models part; else its first
    step = next((s for s in counted if predicted[0][0, s] != predicted[1][0, s]), counted[0])
    end = prompt.length - prompt.n_steps + step + 1
    ids = prompt.input_ids[0, :end]
    ids = ids if prompt.mask is None else ids[prompt.mask[0, :end]]
    write = partial(write_after, decode, int(ids[-1]))
    right = [token for token in prompt.steps[0, step].tolist() if token >= 0]

    def read(found: Tensor, chosen: Tensor) -> Reading:
        top = found[0, step].double().softmax(-1).topk(min(N_GUESSES, found.shape[-1]))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        guesses = [Guess(write(token), round(share, 6), token in right) for token, share in pairs]
        return Reading(guesses, write(int(chosen[0, step])), bool(prompt.is_answer(chosen)[0]))

    return ShownPrompt(
        set=name,
        rank=rank,
        of=of,
        kl=round(kl, 6),
        tokens=write_tokens(decode, ids[-MOST_TOKENS:].tolist()),
        answers=[write(token) for token in right[:N_ANSWERS]],
        n_answers=len(right),
        dense=read(logits[0], predicted[0]),
        circuit=read(logits[1], predicted[1]),
    )


def show_attention(circuit: CircuitModel, prompts: Dataset, decode: Decode) -> ShownAttention | None:
    """The attention of a circuit's heads on the first prompt that is short enough; None without one, or without heads.

    Of many heads those that write most to the residual (the norm of a head's output, its mean over positions).
    """
    ids = next((ids for ids in _read_prompts(prompts) if ids.shape[1] <= MOST_POSITIONS), None)
    patterns = [] if ids is None else read_patterns(circuit, ids)
    if ids is None or not patterns:
        return None
    most = sorted(patterns, key=lambda pattern: -pattern.written)[:MOST_HEADS]
    return ShownAttention(
        tokens=write_tokens(decode, ids[0].tolist()),
        n_heads=len(patterns),
        heads=[_write_head(pattern) for pattern in sorted(most, key=lambda pattern: pattern.head)],
    )


def _read_prompts(prompts: Dataset) -> list[Tensor]:
    """Each prompt without padding: (1, pos) int64."""
    starts = [0] * len(prompts) if prompts.mask is None else prompts.mask.long().argmax(dim=1).tolist()
    return [prompts.input_ids[row : row + 1, start:] for row, start in enumerate(starts)]


def _write_head(pattern: HeadPattern) -> ShownHead:
    levels = (pattern.weights * (len(SCALE) - 1)).round().long().tolist()  # (query, key)
    rows = ["".join(SCALE[level] for level in row[: query + 1]) for query, row in enumerate(levels)]
    return ShownHead(pattern.head.layer, pattern.head.index, round(pattern.written, 3), rows)
