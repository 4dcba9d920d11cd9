"""Latency: that what is compared is compared, and the interval by hand. No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_model, make_prompts

from exporter.measure import _bootstrap_ratio, compare_latency
from exporter.onnx_export import export_onnx


def test_figures_fit_together(tmp_path: Path) -> None:
    export_onnx(make_model(n_layers=4).dense, tmp_path / "a.onnx")
    export_onnx(make_model(n_layers=1).dense, tmp_path / "b.onnx")
    found = compare_latency(tmp_path / "a.onnx", tmp_path / "b.onnx", make_prompts(3, 5).input_ids, blocks=3, threads=1)
    assert (found.batch, found.threads) == (3, 1)
    assert found.speedup == pytest.approx(found.dense / found.circuit)
    assert found.dense > 0
    assert found.speedup_ci95[0] <= found.speedup_ci95[1]


def test_the_interval_of_a_constant_ratio_is_a_point() -> None:
    assert _bootstrap_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == pytest.approx((2.0, 2.0))
    low, high = _bootstrap_ratio([2.0, 2.0, 6.0, 2.0, 6.0], [1.0] * 5)
    assert 2.0 <= low < high <= 6.0
