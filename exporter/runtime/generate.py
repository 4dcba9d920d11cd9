"""Greedy decoding with an ONNX file of any form.

With past, the first call takes the prompt and each later call one token; the other forms compute the whole
sequence again for each token. A plain model takes no padding, so its prompts are decoded one by one. Generation
stops at the model's maximum length.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.errors import InputError
from exporter.graph.guards import GUARDS, TEXT_GUARDS
from exporter.runtime.session import (
    Arrays,
    call_step,
    read_answer_ids,
    read_form,
    read_max_length,
    read_vocab_size,
    require_guards,
)
from exporter.runtime.words import read_labels

if TYPE_CHECKING:
    import onnxruntime


@dataclass
class Generation:
    """The tokens generated after one prompt.

    token_ids: the stop token included. seconds: for each token, the time of its call, which a batch shares. stopped:
    why generation ended; `guard`: the last token is one that the model does not take, as `refusal` says.
    """

    token_ids: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stopped: Literal["stop token", "model length", "max_new_tokens", "guard"] = "max_new_tokens"
    refusal: str | None = None


def generate_greedy(
    session: onnxruntime.InferenceSession,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 20,
    stop_ids: Collection[int] = (),
) -> list[Generation]:
    """Append the likeliest next token repeatedly, for each of `prompts` (token ids, of any lengths).

    Ends after `max_new_tokens`, after one of `stop_ids`, or at the model's maximum length: a model with one fixed
    length generates one token. Raises InputError: max_new_tokens is below 1, the model does not accept a prompt, or is
    a classifier.
    """
    if read_labels(session) is not None:
        raise InputError("this model is a classifier, which generates nothing; take its classes (classify_prompts)")
    if max_new_tokens < 1:
        raise InputError(f"{max_new_tokens} new tokens cannot be generated; ask for at least one")
    for prompt in prompts:
        check_prompt(session, prompt)
    if read_form(session) == "plain":
        return [_decode(session, [prompt], max_new_tokens, stop_ids)[0] for prompt in prompts]
    return _decode(session, prompts, max_new_tokens, stop_ids)


def check_prompt(session: onnxruntime.InferenceSession, prompt: Sequence[int]) -> None:
    """Raise InputError for a prompt that is empty, too long, not of the fixed length, or has ids out of range."""
    n, longest, vocab = len(prompt), read_max_length(session), read_vocab_size(session)
    if n == 0:
        raise InputError("the prompt has no tokens; give at least one")
    if outside := [token for token in prompt if not 0 <= token < vocab]:
        raise InputError(f"token id {outside[0]} is none of this model's, which go from 0 to {vocab - 1}")
    pinned = any(value.name == "input_ids" and isinstance(value.shape[1], int) for value in session.get_inputs())
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
    """Decode prompts as one batch. An ended prompt leaves the batch, so each result is as for the prompt alone."""
    results = [Generation() for _ in prompts]
    longest, answer_ids = read_max_length(session) or np.inf, read_answer_ids(session)
    ids, mask = pad_left(prompts)  # (batch, pos)
    left = np.arange(len(prompts))  # indices of the prompts that are still in the batch
    past: Arrays = {}
    guards = tuple(GUARDS)  # of the prompt; what is generated is judged by `TEXT_GUARDS` alone
    while len(left):
        start = time.perf_counter()
        logits, past, seen = call_step(session, ids[:, -1:] if past else ids, mask, past, guards=guards)
        if guards is not TEXT_GUARDS:
            require_guards(seen)
        refusals = _name_refusals(seen, len(left))
        guards = TEXT_GUARDS
        tokens = logits[:, -1].argmax(-1)  # (batch,)
        tokens = tokens if answer_ids is None else answer_ids[tokens]
        seconds = time.perf_counter() - start
        go_on = np.zeros(len(left), bool)
        for row, token in enumerate(tokens.tolist()):
            result = results[left[row]]
            if refusals[row] is not None:  # of the token before, which the model does not take
                result.stopped, result.refusal = "guard", refusals[row]
                continue
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
            first = int(mask.any(axis=0).argmax())  # earlier columns are padding in every row
            ids, mask = ids[:, first:], mask[:, first:]
    return results


def _name_refusals(seen: Mapping[str, np.ndarray[Any, Any]], batch: int) -> list[str | None]:
    """For each prompt: what the first guard that is false says; None where all are true."""
    return [next((GUARDS[name] for name, holds in seen.items() if not holds[row]), None) for row in range(batch)]


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids (batch, pos) int64, 0 at padding, and the mask, (batch, pos) bool."""
    pos = max(map(len, prompts), default=0)
    ids, mask = np.zeros((len(prompts), pos), np.int64), np.zeros((len(prompts), pos), bool)
    for row, prompt in enumerate(prompts):
        ids[row, pos - len(prompt) :] = prompt
        mask[row, pos - len(prompt) :] = True
    return ids, mask
