"""What keeps a test short: jobs time a call or two, few prompts are of unseen kinds, sessions have one thread."""

from __future__ import annotations

from typing import Any

from tiers import THOROUGH

from exporter.evidence import latency
from exporter.job import build
from exporter.runtime.session import open_session
from exporter.tasks import SplitSizes


def compare_briefly(*arguments: Any, **options: Any) -> latency.Latency:
    """`compare_latency` with two calls a block, of which the first is not counted."""
    least, latency._LEAST_CALLS = latency._LEAST_CALLS, 1
    try:
        return latency.compare_latency(*arguments, **options | {"blocks": 1, "block_seconds": 0.0, "threads": 1})
    finally:
        latency._LEAST_CALLS = least


def be_brief() -> None:
    """From here on, in all of this process; the figures are no test's concern, and take seconds."""
    build.compare_latency = compare_briefly
    open_session.__kwdefaults__["threads"] = 1
    if not THOROUGH:
        SplitSizes.__init__.__defaults__ = (*SplitSizes.__init__.__defaults__[:-1], 8)  # each set of unseen kinds
