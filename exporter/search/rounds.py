"""How long a network is healed, and on how many prompts, so that a search ends in minutes."""

from __future__ import annotations

ROUND_AT_WHOLE, STEPS_AT_WHOLE = 6, 22  # of healing at the size of the dense model; at a share of it as many more
LEAST_ROUND, MOST_ROUND, MOST_STEPS = 24, 240, 720
LEAST_LESSONS, MOST_LESSONS, LESSONS_AT_SIZE = 1000, 3000, 1.6e11  # prompts, and prompts times parameters


def count_steps(shrunk: int) -> tuple[int, int]:
    """How many steps of healing a network has in the first round, and in all, at 1 / `shrunk` of the dense model.

    More, the smaller it is: a step costs what is left of the model.
    """
    first = min(MOST_ROUND, max(LEAST_ROUND, ROUND_AT_WHOLE * shrunk))
    return first, min(MOST_STEPS, max(2 * LEAST_ROUND, STEPS_AT_WHOLE * shrunk))


def count_lessons(parameters: int) -> int:
    """How many prompts a dense model of so many parameters can be asked about."""
    return min(MOST_LESSONS, max(LEAST_LESSONS, int(LESSONS_AT_SIZE / parameters)))
