"""The table of runtimes: what a cell says follows from the answers alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

runtimes = pytest.importorskip("runtimes")
readers = pytest.importorskip("runtime_table.readers")


def make_case(places: list[int]) -> Any:
    return SimpleNamespace(places=places)


def test_a_yes_needs_every_answer_and_each_no_its_reason() -> None:
    cases = [make_case([1, 2]), make_case([3]), make_case([4])]
    reasons = runtimes.judge(cases, [[1, 2], [5], "refuses:\n   this"])
    assert reasons == ["", "answers otherwise on 1 of 1 prompts", "refuses: this"]
    table = runtimes.render_table(["a", "b", "c"], {"one": reasons, "two": "pip install two"})
    assert table.splitlines() == [
        "| form | one | two |",
        "|---|---|---|",
        "| a | yes | – |",
        "| b | no (1) | – |",
        "| c | no (2) | – |",
        "",
        "1. It answers otherwise on 1 of 1 prompts",
        "2. It refuses: this",
        "- two was not here: pip install two",
    ]


def test_answers_are_those_after_the_last_token() -> None:
    logits = np.zeros((2, 3, 4))
    logits[0, 2, 1] = logits[1, 2, 3] = logits[:, 0, 2] = 1
    assert readers.find_places(logits) == [1, 3]
    assert readers.find_places(logits[:, 2]) == [1, 3]


def test_calls_of_one_case_are_put_together_and_an_error_stands_for_all() -> None:
    assert readers.join([[1], [2, 3], "bad", [4]], [0, 0, 1, 1], 2) == [[1, 2, 3], "fails: bad"]


def test_what_is_raised_is_the_reason_but_a_missing_runtime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    target = SimpleNamespace(refuse=lambda shape: shape)
    monkeypatch.setitem(readers.TARGETS, "onnxruntime", target)

    def run(case: Any) -> list[int]:
        if case.places == []:
            raise readers.MissingError("install it")
        return [10 // case.places[0]]

    cases = [
        SimpleNamespace(shape=reason, places=[n]) for reason, n in ((None, 5), ("takes no such form", 5), (None, 0))
    ]
    assert readers.answer_each(cases, run) == [
        [2], "takes no such form", "fails: ZeroDivisionError: integer division or modulo by zero",
    ]  # fmt: skip
    with pytest.raises(readers.MissingError, match="install it"):
        readers.answer_each([SimpleNamespace(shape=None, places=[])], run)
