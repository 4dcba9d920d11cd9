"""The fuzzing of exported graphs: many draws, and that it finds what an answer must not be."""

from __future__ import annotations

from dataclasses import replace

import fuzz_graphs
import numpy as np
import pytest


@pytest.mark.slow  # it exports every form first; tests/graph/test_hostile_inputs.py is quicker
def test_no_draw_crashes_or_answers_what_it_must_not() -> None:
    found = fuzz_graphs.fuzz(2000, seed=1)
    assert found["findings"] == []
    assert found["answered"] > 0 and found["refused"] > 0


def test_a_crash_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_graphs.sys, "executable", "false")
    (finding,) = fuzz_graphs.fuzz(3, seed=0)["findings"]
    assert "the process ended with 1 at the start" in finding


def test_wrong_answers_are_findings() -> None:
    model, options = fuzz_graphs.make_model("gpt2"), fuzz_graphs.FORMS["masked"]
    call = fuzz_graphs.Call(np.array([[1, 2, 3]]), np.array([[0, 1, 1]]), np.zeros((1, 0), np.int64))
    right = np.zeros((1, 3, fuzz_graphs.VOCAB), np.float32)
    right[0, 1:] = fuzz_graphs.answer_alone(None, np.array([2, 3]), model, options)

    def judge(logits: np.ndarray, **changes: object) -> str:
        return fuzz_graphs.judge(replace(call, **changes), {"logits": logits}, None, model, options) or ""

    assert judge(right) == ""
    assert "is off by" in judge(right + 0.1)
    assert "not finite" in judge(right * np.nan)
    assert "shapes that do not fit" in judge(right, fits=False)
    assert "does not know" in judge(right, ids=np.array([[1, 2, -3]]))
