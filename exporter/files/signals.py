"""Signals that end a process, held back while files are between two states."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals by which a user, the system or a closing terminal ends a process that may clean up first."""


@contextmanager
def signals_deferred() -> Iterator[None]:
    """`ENDING` signals take effect at the end of the context. They only ever interrupt the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = {}

    def remember(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    try:
        for number in ENDING:
            previous[number] = signal.signal(number, remember)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if pending:
            signal.raise_signal(pending[0])
