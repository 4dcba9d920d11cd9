"""Latency: how long is measured, what is concluded, the interval by hand. No timing is asserted: clocks are fake."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from tiny import make_model, make_prompts

from exporter.evidence.latency import Call, Comparison, Effort, compare_calls, compare_latency
from exporter.graph.export import export_onnx


class Clock:
    """Time that passes in calls and pauses only."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.log.append("pause")

    def call(self, name: str, seconds: float | Iterator[float]) -> Call:
        def run() -> None:
            self.now += seconds if isinstance(seconds, float) else next(seconds)
            self.log.append(name)

        return run

    def compare(
        self, reference: float | Iterator[float], circuit: float | Iterator[float], effort: Effort
    ) -> Comparison:
        calls = self.call("r", reference), self.call("c", circuit)
        return compare_calls(*calls, effort, clock=self, sleep=self.sleep)


def test_figures_fit_together(tmp_path: Path) -> None:
    export_onnx(make_model(n_layers=4).dense, tmp_path / "a.onnx")
    export_onnx(make_model(n_layers=1).dense, tmp_path / "b.onnx")
    found = compare_latency(tmp_path / "a.onnx", tmp_path / "b.onnx", make_prompts(3, 5).input_ids, blocks=3, threads=1)
    assert (found.batch, found.threads) == (3, 1)
    assert found.dense > 0 and found.circuit > 0
    assert found.speedup_ci95[0] <= found.speedup <= found.speedup_ci95[1]


def test_the_ratio_is_the_median_of_rounds() -> None:
    found = Comparison(reference=(2.0, 4.0, 9.0), circuit=(1.0, 2.0, 1.0))
    assert (found.ratio, found.reference_seconds, found.circuit_seconds) == (2.0, 4.0, 1.0)


def test_the_interval_of_a_constant_ratio_is_a_point() -> None:
    found = Comparison((2.0, 4.0, 8.0), (1.0, 2.0, 4.0))
    assert found.interval() == (2.0, 2.0)
    assert (found.place(2.0), found.place(1.9), found.place(2.1)) == ("above", "above", "below")
    low, high = Comparison((2.0, 2.0, 6.0, 2.0, 6.0), (1.0,) * 5).interval()
    assert 2.0 <= low < high <= 6.0


def test_blocks_take_turns_each_after_a_pause_and_a_warm_up() -> None:
    clock = Clock()
    clock.compare(1.0, 0.5, Effort(rounds=2))
    blocks = [part.split() for part in " ".join(clock.log).split("pause")[1:]]
    assert blocks == [["r"] * 4, ["c"] * 4, ["c"] * 4, ["r"] * 4]  # one call of warm-up, and the least of three


def test_a_block_ends_by_seconds_or_by_calls() -> None:
    for seconds, n_calls in ((0.001, 20), (0.02, 8), (1.0, 3)):
        clock = Clock()
        clock.compare(seconds, seconds, Effort(rounds=1, block_seconds=0.15))
        assert clock.log.count("c") == n_calls + 1


@pytest.mark.parametrize(("bar", "place"), [(1.0, "above"), (2.9, "below")])
def test_it_stops_when_the_answer_is_clear(bar: float, place: str) -> None:
    found = Clock().compare(1.0, 0.5, Effort(rounds=7, seconds=1e4, bar=bar))
    assert (len(found.circuit), found.place(bar)) == (7, place)


def test_it_goes_on_while_the_interval_lies_across_the_bar() -> None:
    """Every other block of the circuit is 30 % slower: a median in between, and no end to doubt."""
    slow = [0.5, 0.65]
    blocks = cycle([slow[i] for i in (0, 1) for _ in range(4)])
    found = Clock().compare(1.0, blocks, Effort(rounds=7, seconds=300.0, bar=1.8))
    assert len(found.circuit) > 40
    assert found.place(1.8) == "across"


def test_without_a_bar_it_stops_at_a_narrow_interval() -> None:
    def measure(*factors: float) -> int:
        blocks = cycle([0.5 * factor for factor in factors for _ in range(4)])
        return len(Clock().compare(1.0, blocks, Effort(rounds=7, seconds=300.0, precision=0.01)).circuit)

    assert measure(1.0, 1.001, 0.999) == 7
    assert measure(1.0, 1.2, 0.9) > 15


def test_noise_that_comes_and_goes_leaves_the_ratio() -> None:
    """A machine that is slow now and then: rounds are off, in both directions; their median is not."""
    speeds = cycle(factor for factor in (1.0, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.5) for _ in range(4))
    found = Clock().compare((2.0 * factor for factor in speeds), (1.0 * factor for factor in speeds), Effort(rounds=16))
    assert found.ratio == pytest.approx(2.0)
