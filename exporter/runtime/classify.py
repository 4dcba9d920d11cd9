"""The class of a text by an ONNX file whose logits are those of classes (`--logits classes`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError
from exporter.runtime.generate import check_prompt, pad_left
from exporter.runtime.session import read_form, run_step
from exporter.runtime.words import read_labels

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Classification:
    """The likeliest class of a prompt, and the probability of each, by name, in the order of the file's logits.

    seconds: of its call, which a batch shares. warnings: likely mistakes in the prompt, as sentences.
    """

    label: str
    scores: dict[str, float]
    prompt_ids: list[int]
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The classification as JSON-able data."""
        return asdict(self) | {"warnings": list(self.warnings)}


def classify_prompts(session: onnxruntime.InferenceSession, prompts: Sequence[Sequence[int]]) -> list[Classification]:
    """The class of each of `prompts` (token ids, of any lengths). A plain model takes no padding: they go one by one.

    Raises InputError: the file is a language model, or does not accept a prompt.
    """
    labels = read_labels(session)
    if labels is None:
        raise InputError("this model is no classifier; generate text with it, or export with --logits classes")
    for prompt in prompts:
        check_prompt(session, prompt)
    together = [prompts] if read_form(session) != "plain" else [[prompt] for prompt in prompts]
    return [found for batch in together if batch for found in _classify(session, batch, labels)]


def _classify(
    session: onnxruntime.InferenceSession, prompts: Sequence[Sequence[int]], labels: Sequence[str]
) -> list[Classification]:
    """The classes of one batch."""
    ids, mask = pad_left(prompts)  # (batch, pos)
    start = time.perf_counter()
    logits = run_step(session, ids, mask, {})[0][:, -1].astype(np.float64)  # (batch, class)
    seconds = time.perf_counter() - start
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    scores = weights / weights.sum(-1, keepdims=True)
    return [
        Classification(
            labels[int(row.argmax())], dict(zip(labels, map(float, row), strict=True)), list(prompt), seconds
        )
        for prompt, row in zip(prompts, scores, strict=True)
    ]
