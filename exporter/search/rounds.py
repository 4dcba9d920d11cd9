"""How long a network is healed: longer, the smaller it is, as a step costs what is left of the model."""

from __future__ import annotations

ROUND_AT_WHOLE, STEPS_AT_WHOLE = 6, 22  # of healing at the size of the dense model; at a share of it as many more
LEAST_ROUND, MOST_ROUND, MOST_STEPS = 24, 240, 720


def count_steps(shrunk: int) -> tuple[int, int]:
    """How many steps of healing a network has in the first round, and in all, at 1 / `shrunk` of the dense model."""
    first = min(MOST_ROUND, max(LEAST_ROUND, ROUND_AT_WHOLE * shrunk))
    return first, min(MOST_STEPS, max(2 * LEAST_ROUND, STEPS_AT_WHOLE * shrunk))
