"""The page on sweeps shows the results that are stored."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/paper_sweep.py as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("paper_sweep")


def test_the_page_is_that_of_the_results(script: Any) -> None:
    stored = json.loads(script.RESULTS.read_text(encoding="utf-8")) if script.RESULTS.exists() else []
    shown = script.PAGE.read_text(encoding="utf-8").split(script.START)[1].split(script.END)[0]
    assert shown.strip() == "\n\n".join(map(script.render_run, stored)).strip()
    for run in stored:
        assert len(run["rows"]) == 48 and (script.CURVES / f"{run['name']}.svg").exists()


def test_a_row_shows_means_and_deviations(script: Any) -> None:
    values = {"heads": 2.5, "mlps_kept": 3.0, "size": 0.45, "accuracy": 0.998, "kl": 0.0312}
    row = {"alpha": 0.02} | {name: {"mean": value, "std": value / 10} for name, value in values.items()}
    assert script.render_row(row) == "| 0.02 | 2.5 ± 0.2 | 3.0 ± 0.3 | 45.0% ± 4.5% | 99.8% ± 10.0% | 0.031 ± 0.003 |"
