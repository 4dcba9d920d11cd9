"""One ONNX session that answers batches of prompts: what it takes, what may share a call, and what it says.

A prompt's answer must not depend on its company. Prompts of one length share a call of a plain graph; a graph with a
mask takes them padded on the left; an int8 graph with one scale for the whole batch takes each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError
from exporter.graph.guards import GUARDS
from exporter.runtime.generate import pad_left
from exporter.runtime.session import make_feeds, read_answer_ids, read_form, read_max_length, read_vocab_size
from exporter.serve.refusals import RequestError, name_refusal

if TYPE_CHECKING:
    import onnxruntime

MOST_TOKENS = 1 << 13  # of one call, padding included: its activations stay in tens of megabytes
MOST_LOGITS = 1 << 26  # numbers that one call returns: 256 MiB


@dataclass(frozen=True)
class Query:
    """One prompt: its token ids, and how many answers are asked for."""

    ids: tuple[int, ...]
    top: int = 1


@dataclass(frozen=True)
class Ranking:
    """The likeliest answers in falling order: columns of the logits, and their probabilities among all columns."""

    columns: tuple[int, ...]
    probabilities: tuple[float, ...]


class Engine:
    """A session, and what its file says of it. `batch_dependent`: whether prompts in one call change each other."""

    def __init__(self, session: onnxruntime.InferenceSession, *, batch_dependent: bool = False) -> None:
        self.session, self.batch_dependent = session, batch_dependent
        self.form, self.longest = read_form(session), read_max_length(session)
        self.vocab_size, self.answer_ids = read_vocab_size(session), read_answer_ids(session)
        outputs = {value.name: value.shape for value in session.get_outputs()}
        if "logits" not in outputs:
            raise InputError("the model gives no logits; serve a bundle that export-circuit wrote")
        self.guards = [name for name in GUARDS if name in outputs]
        self._shape = outputs["logits"]
        pos = next(value.shape[1] for value in session.get_inputs() if value.name == "input_ids")
        self.pinned = pos if isinstance(pos, int) else None

    def check(self, ids: Sequence[int]) -> None:
        """Raise RequestError for a prompt that the graph does not take."""
        if not ids:
            raise RequestError("empty_prompt", "the prompt has no tokens; give at least one")
        if outside := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise RequestError(
                "unknown_token",
                f"token id {str(outside[0])[:24]} is none of this model's, which go from 0 to {self.vocab_size - 1}",
            )
        n, longest = len(ids), self.longest
        if self.pinned is not None and n != self.pinned:
            raise RequestError("wrong_length", f"the prompt has {n} tokens, and this model takes exactly {self.pinned}")
        if longest is not None and n > longest:
            raise RequestError("wrong_length", f"the prompt has {n} tokens, and this model takes at most {longest}")

    def bucket(self, query: Query) -> int:
        """Queries of one bucket may share a call: same length, or where there is a mask, at most twice as long."""
        return len(query.ids) if self.form == "plain" else -len(query.ids).bit_length()

    def most_rows(self, pos: int) -> int:
        """How many prompts of `pos` tokens one call takes; at least one."""
        if self.batch_dependent:
            return 1
        width = self._shape[-1] if isinstance(self._shape[-1], int) else self.vocab_size
        numbers = width * (pos if len(self._shape) == 3 and not isinstance(self._shape[1], int) else 1)
        return max(1, min(MOST_TOKENS // pos, MOST_LOGITS // numbers))

    def run(self, queries: Sequence[Query]) -> list[Ranking | RequestError]:
        """One call: for each query its ranking, or why the graph disowns the prompt. All are of one bucket."""
        ids, mask = pad_left([query.ids for query in queries])  # (batch, pos) each
        feeds = make_feeds(self.session, ids, mask, {})
        logits, *verdicts = self.session.run(["logits", *self.guards], feeds)
        last = logits if logits.ndim == 2 else logits[:, -1]  # (batch, vocab or answer or class)
        results: list[Ranking | RequestError] = []
        for row, query in enumerate(queries):
            failed = [name for name, verdict in zip(self.guards, verdicts, strict=True) if not verdict[row]]
            results.append(_refuse(failed[0]) if failed else rank(last[row], query.top))
        return results


def rank(logits: np.ndarray[Any, Any], top: int) -> Ranking:
    """The `top` likeliest columns of (column,) logits. Equal logits keep the order of their columns."""
    logits = logits.astype(np.float32, copy=False)
    top = min(top, len(logits))
    best = np.array([logits.argmax()]) if top == 1 else _find_top(logits, top)
    weights = np.exp(logits - logits[best[0]])
    shares = weights[best] / weights.sum(dtype=np.float64)
    return Ranking(tuple(best.tolist()), tuple(shares.tolist()))


def _find_top(logits: np.ndarray[Any, Any], top: int) -> np.ndarray[Any, Any]:
    """Columns of the `top` largest, in falling order, the first of equal ones first: as argmax has it."""
    least = np.partition(logits, len(logits) - top)[len(logits) - top]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates], kind="stable")][:top]


def _refuse(guard: str) -> RequestError:
    return RequestError(
        name_refusal(guard), f"{GUARDS[guard]}: the prompt is none that it was made for (its output {guard} is false)"
    )
