"""Prompts and attention as a report shows them: plain data, which needs no torch to be read."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.errors import InputError

SCALE = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
"""A weight from 0 to 1 as one character: SCALE[round(63 * weight)]."""


@dataclass(frozen=True)
class Guess:
    """A token that a model gives a probability, and whether it is a right answer."""

    token: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Reading:
    """What one model makes of a prompt: its likeliest tokens, its prediction, and whether all of that is right.

    The prediction is the likeliest of the choices where a prompt has some. `right` is of an answer's every token.
    """

    top: list[Guess]
    predicted: str
    right: bool


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt by token, up to the answer position that is shown; answers: right tokens there, the first few.

    rank: 1 for the largest KL (nats) of all `of` held-out prompts. n_answers: how many right tokens there are.
    """

    set: str
    rank: int
    of: int
    kl: float
    tokens: list[str]
    answers: list[str]
    n_answers: int
    dense: Reading
    circuit: Reading


@dataclass(frozen=True)
class ShownHead:
    """Where a head looks: for each query a text with one character of `SCALE` for each token up to itself."""

    layer: int
    index: int
    written: float
    rows: list[str]


@dataclass(frozen=True)
class ShownAttention:
    """The heads that write most to the residual on one prompt, of `n_heads`, in ascending order.

    Raises InputError for rows that are none of so many tokens.
    """

    tokens: list[str]
    n_heads: int
    heads: list[ShownHead]

    def __post_init__(self) -> None:
        lengths = [*range(1, len(self.tokens) + 1)]
        for head in self.heads:
            if [len(row) for row in head.rows] != lengths or not set("".join(head.rows)) <= set(SCALE):
                raise InputError(f"the attention of head {head.layer}.{head.index} is damaged; export again")
