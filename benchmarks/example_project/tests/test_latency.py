"""The shipped model is not slower than it was."""

from __future__ import annotations

from pathlib import Path

import pytest

BASELINE = Path(__file__).parent.parent / "baseline.json"


@pytest.mark.parametrize("batch", [1, 32])
def test_latency(circuit_benchmark, model: Path, batch: int) -> None:
    # It is timed beside a twin of the baseline's model. 30 %, because this runs on machines of all kinds, busy ones
    # too; 10 % holds where nothing else runs.
    circuit_benchmark(model, baseline=BASELINE, batch=batch, max_regression="30%")
