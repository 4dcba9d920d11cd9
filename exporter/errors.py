"""Errors for users. Each carries the exit code that the command ends with.

A message says what was got, what is allowed and what to do next, in one or two lines. Broken
invariants of ours are `assert`s, not these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExportCircuitError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1


class UsageError(ExportCircuitError):
    """An option or argument that does not exist or does not fit the others."""

    exit_code = 2


class InputError(ExportCircuitError):
    """Data, a model, a file or a folder that cannot be used as it is."""

    exit_code = 3


class ExactnessError(ExportCircuitError):
    """Hooked, rewritten and exported model do not agree; nothing is left on disk."""

    exit_code = 4


class RegressionError(ExportCircuitError):
    """A measured performance is below the bar that was asked for."""

    exit_code = 5


class MissingRuntimeError(ExportCircuitError):
    """A device or a runtime (ONNX Runtime, CUDA) that is not there."""

    exit_code = 6


class LostRankError(MissingRuntimeError):
    """Another process of a distributed search died or fell silent; the journal stays, for `--resume`."""


@contextmanager
def refuse_panics(what: str) -> Iterator[None]:
    """What a library written in Rust panics at, as an InputError: its PanicException is no Exception.

    `what` cannot be done, such as `the text cannot be read by this tokenizer`.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} ({' '.join(str(error).split())[:100]})") from error
