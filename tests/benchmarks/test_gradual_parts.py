"""The measurement of a gradual search's parts, on a tiny shape."""

from __future__ import annotations

import sys

import gradual_cost
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_each_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradual_cost.SHAPES, "tiny", (3, 6, 2, 48, 96, 500))
    monkeypatch.setattr(gradual_cost, "LARGE", 0.4)
    monkeypatch.setattr(gradual_cost, "SMALL", 0.2)
    monkeypatch.setattr(gradual_cost, "measure_gemm_rates", lambda rows, matrix: (2e9, 1e9))
    found = gradual_cost.run_shape("tiny")
    assert len(found["parts"]) == 7
    assert all(part["flops"] > 0 and part["seconds"] >= 0 for part in found["parts"].values())
    flops = {name: part["flops"] for name, part in found["parts"].items()}
    assert flops["healing, a tenth"] > flops["healing, 1.5 %"]
    assert flops["scores, dense model, recomputed"] > flops["scores, dense model"]
    assert found["gemm_gflops_per_s_median"] == 1.0
