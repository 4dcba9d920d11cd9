"""Which scales an int8 file has, by who reads it: where requests share a batch, none may move another's answer."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.graph.options import Precision, Scales

BATCHING = frozenset({"transformers-js", "triton"})
"""Readers that put several users' requests into one batch, or are made to be called so."""


def choose_scales(asked: Scales | None, precision: Precision, readers: Iterable[str] = ()) -> Scales:
    """The scales of a file's activations: those asked for, else by token in int8 where one of the readers batches.

    `readers` are names of targets. In other precisions there are none, which is written "tensor".
    """
    if asked is not None:
        return asked
    return "token" if precision == "int8" and BATCHING.intersection(readers) else "tensor"
