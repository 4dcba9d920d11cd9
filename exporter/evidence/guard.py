"""How well a file's guards tell prompts of its task from others: false alarms, and what is refused of what is not.

All prompts go through the file itself. Those that are not of the task were used for nothing else: the other built-in
tasks, plain sentences, and random tokens. For a file of one prompt length, a text is repeated until it is long enough,
and its last tokens are taken. Unseen sets are of the task in other words: what is refused of them is as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from exporter.errors import InputError
from exporter.evidence.guarded import GuardFigures, Refusals
from exporter.graph.guards import GUARDS, SCOPE_DISTANCE
from exporter.metrics.statistics import Accuracy
from exporter.network.scope import ALARMS, Scope, take_prompts
from exporter.runtime.session import read_max_length, run_guards
from exporter.tasks import TASKS, SplitSizes, TaskData, Tokenizer
from exporter.tasks.dataset import Dataset
from exporter.tasks.tokenizer import encode_text

if TYPE_CHECKING:
    import onnxruntime

STATISTIC = "mahalanobis"  # of the residual before the final norm at the answer position: `exporter.network.scope`
N_OTHERS = 200  # prompts of each other task, and of random tokens
_CHUNK = 32

Prompts = Iterable[tuple[torch.Tensor, torch.Tensor | None]]
"""Chunks of token ids (prompt, pos), and the mask or None."""


def measure_guard(
    session: onnxruntime.InferenceSession, scope: Scope, data: TaskData, tokenizer: Tokenizer, *, n_tokens: int
) -> GuardFigures:
    """Run a file with the guard `in_scope` on the task's sets and on prompts that are not of the task.

    n_tokens: the size of the model's vocabulary. Built-in tasks that the tokenizer cannot express are left out.
    """
    test = _run(session, take_prompts(data.test))
    longest = read_max_length(session)
    pinned = any(value.name == "input_ids" and isinstance(value.shape[1], int) for value in session.get_inputs())
    others = {
        name: _run(session, _by_length(_fit_lengths(texts, longest, pinned=pinned)))
        for name, texts in _collect_others(data, tokenizer, n_tokens).items()
    }
    unseen = {name: _run(session, take_prompts(prompts)) for name, prompts in data.ood.items()}
    return GuardFigures(
        statistic=STATISTIC,
        directions=scope.directions.shape[1],
        n_fitted=scope.n_fitted,
        n_aside=scope.n_aside,
        alarms=scope.alarms,
        test=_summarise(test, None),
        unseen={name: _summarise(found, test) for name, found in unseen.items()},
        others={name: _summarise(found, test) for name, found in others.items()},
    )


def note_guard(figures: GuardFigures | None, *, asked: float = ALARMS) -> tuple[str, ...]:
    """A note where prompts were too few for the share of false alarms that was `asked` for."""
    if figures is None or figures.alarms <= asked:
        return ()
    return (
        f"the guard may refuse {figures.alarms:.1%} of the task's prompts instead of {asked:.0%}: its limit was set on "
        f"{figures.n_aside} selection prompts, and {asked:.0%} takes {round(1 / asked) - 1}",
    )


Found = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Whether some guard refuses each prompt, (prompt,) bool, and its distance, (prompt,)."""


def _run(session: onnxruntime.InferenceSession, chunks: Prompts) -> Found:
    refused, distances = [], []
    for ids, mask in chunks:
        found = run_guards(session, ids.numpy(), None if mask is None else mask.numpy())
        refused.append(~np.logical_and.reduce([found[name] for name in GUARDS if name in found]))
        distances.append(np.nan_to_num(found[SCOPE_DISTANCE], nan=np.inf))
    return np.concatenate(refused), np.concatenate(distances)


def _summarise(found: Found, test: Found | None) -> Refusals:
    refused, distances = found
    share = Accuracy.of(int(refused.sum()), len(refused))
    auroc = None
    if test is not None:
        auroc = float(mannwhitneyu(distances, test[1]).statistic) / (len(distances) * len(test[1]))
    return Refusals(len(refused), share.accuracy, share.ci95, auroc)


def _collect_others(data: TaskData, tokenizer: Tokenizer, n_tokens: int) -> dict[str, list[Sequence[int]]]:
    """Token ids of prompts that are not of the task, by what they are."""
    found: dict[str, list[Sequence[int]]] = {}
    sizes = SplitSizes(patching=1, selection=1, test=N_OTHERS, ood=1)
    for name, spec in TASKS.items():
        if name == data.task:
            continue
        try:
            found[name] = _list_prompts(spec.build(tokenizer, seed=0, sizes=sizes).test)
        except InputError:  # this tokenizer cannot express it, or has too few prompts of it
            continue
    text = resources.files("exporter.tasks").joinpath("words", "sentences.txt").read_text(encoding="utf-8")
    lines = [encode_text(tokenizer, line) for line in text.splitlines()]
    found["sentences"] = [*lines, *(line[: len(line) // 2] for line in lines)]
    generator = torch.Generator().manual_seed(1)  # not that of `fit_scope`
    lengths = [len(prompt) for prompt in _list_prompts(data.test[:N_OTHERS])]
    found["random tokens"] = [torch.randint(n_tokens, (length,), generator=generator).tolist() for length in lengths]
    return found


def _list_prompts(dataset: Dataset) -> list[Sequence[int]]:
    return [
        row.tolist() if mask is None else row[mask[i]].tolist()
        for ids, mask in take_prompts(dataset)
        for i, row in enumerate(ids)
    ]


def _fit_lengths(texts: list[Sequence[int]], longest: int | None, *, pinned: bool) -> list[list[int]]:
    """The last tokens of each text, at most `longest`; `pinned`: just as many, the text being repeated."""
    fitted = []
    for ids in texts:
        times = -(-longest // len(ids)) if pinned and longest is not None else 1
        fitted.append((list(ids) * times)[-(longest or 0) :])
    return fitted


def _by_length(texts: list[list[int]]) -> Iterable[tuple[torch.Tensor, None]]:
    """Chunks of texts that are equally long, so that no form needs padding."""
    for length in sorted({len(ids) for ids in texts}):
        rows = torch.tensor([ids for ids in texts if len(ids) == length])
        yield from ((some, None) for some in rows.split(_CHUNK))
