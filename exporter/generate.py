"""Greedy decoding with an ONNX file of any form.

With past, the prompt goes in once and then one token at a time; the other forms compute the whole sequence
again for each token. A plain model takes no padding, so its prompts are decoded one by one. Where the model's
length ends, so does the text.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.errors import InputError
from exporter.runtime import Arrays, read_answer_ids, read_form, read_max_length, read_vocab_size, run_step

if TYPE_CHECKING:
    import onnxruntime


@dataclass
class Generation:
    """What followed one prompt: token ids (the stop token too), seconds for each, and why it ended."""

    token_ids: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stopped: Literal["stop token", "model length", "max_new_tokens"] = "max_new_tokens"


def generate_greedy(
    session: onnxruntime.InferenceSession,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 20,
    stop_ids: Collection[int] = (),
) -> list[Generation]:
    """The likeliest next token, again and again, after each of `prompts` (token ids, of any lengths).

    Ends after `max_new_tokens`, after one of `stop_ids`, or where the model knows no further position: a model
    that is pinned to one length gives one token. Raises InputError for a prompt that the model cannot take.
    """
    if max_new_tokens < 1:
        raise InputError(f"{max_new_tokens} new tokens cannot be generated; ask for at least one")
    for prompt in prompts:
        _check_prompt(session, prompt)
    if read_form(session) == "plain":
        return [_decode(session, [prompt], max_new_tokens, stop_ids)[0] for prompt in prompts]
    return _decode(session, prompts, max_new_tokens, stop_ids)


def _check_prompt(session: onnxruntime.InferenceSession, prompt: Sequence[int]) -> None:
    """Raise InputError for a prompt that is empty, too long, of another length than the pinned one, or no text."""
    n, longest, vocab = len(prompt), read_max_length(session), read_vocab_size(session)
    if n == 0:
        raise InputError("the prompt has no tokens; give at least one")
    if outside := [token for token in prompt if not 0 <= token < vocab]:
        raise InputError(f"token id {outside[0]} is none of this model's, which go from 0 to {vocab - 1}")
    pinned = isinstance(session.get_inputs()[0].shape[1], int)
    if pinned and n != longest:
        raise InputError(
            f"the prompt has {n} tokens, and this model takes exactly {longest}; "
            "give a prompt of that length, or export with --mean global or --with-past"
        )
    if longest is not None and n > longest:
        raise InputError(f"the prompt has {n} tokens, and this model takes at most {longest}; shorten it")


def _decode(
    session: onnxruntime.InferenceSession,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[Generation]:
    """Decode together. A prompt that has ended leaves the batch, so that each gets what it would get alone."""
    results = [Generation() for _ in prompts]
    longest, answer_ids = read_max_length(session) or np.inf, read_answer_ids(session)
    ids, mask = _pad_left(prompts)  # (batch, pos)
    left = np.arange(len(prompts))  # which prompts go on
    past: Arrays = {}
    while len(left):
        start = time.perf_counter()
        logits, past = run_step(session, ids[:, -1:] if past else ids, mask, past)
        tokens = logits[:, -1].argmax(-1)  # (batch,)
        tokens = tokens if answer_ids is None else answer_ids[tokens]
        seconds = time.perf_counter() - start
        go_on = np.zeros(len(left), bool)
        for row, token in enumerate(tokens.tolist()):
            result = results[left[row]]
            result.token_ids.append(token)
            result.seconds.append(seconds)
            if token in stop_ids:
                result.stopped = "stop token"
            elif len(result.token_ids) == max_new_tokens:
                result.stopped = "max_new_tokens"
            elif mask[row].sum() >= longest:
                result.stopped = "model length"
            else:
                go_on[row] = True
        left = left[go_on]
        ids = np.concatenate([ids, tokens[:, None]], axis=1)[go_on]
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)[go_on]
        past = {name: array[go_on] for name, array in past.items()}
        if len(left) and not past:
            first = int(mask.any(axis=0).argmax())  # columns before are padding in every row
            ids, mask = ids[:, first:], mask[:, first:]
    return results


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids (batch, pos) int64, 0 at padding, and the mask, (batch, pos) bool."""
    pos = max(map(len, prompts), default=0)
    ids, mask = np.zeros((len(prompts), pos), np.int64), np.zeros((len(prompts), pos), bool)
    for row, prompt in enumerate(prompts):
        ids[row, pos - len(prompt) :] = prompt
        mask[row, pos - len(prompt) :] = True
    return ids, mask
