"""What jobs on a tiny checkpoint are given on the command line."""

from __future__ import annotations

SMALL = ("--patching-prompts", "20", "--selection-prompts", "20", "--test-prompts", "30")
CIRCUIT = '{"heads": [[0, 1], [1, 0]], "mlps": [1]}'
