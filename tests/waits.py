"""Waits that end with what they wait for, or with the process that should bring it about.

How fast the machine is decides nothing: only a hang meets the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 900.0  # seconds


def wait_until(event: Callable[[], bool], goes_on: Callable[[], bool]) -> bool:
    """Wait until something is so, or until what should bring it about does not go on; returns whether it is so."""
    limit = time.monotonic() + HANG
    while not event():
        if not goes_on():
            return event()  # it may have come with the last that was done
        assert time.monotonic() < limit, "it hangs"
        time.sleep(0.002)
    return True
