"""Killed at any moment, a job goes on where it was and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import Run
from nursery import Child, Nursery
from tiers import THOROUGH
from waits import wait_until

from exporter.circuit import Circuit
from exporter.outputs.manifest import Manifest


def job(model: Path, out: Path) -> list[object]:
    return [
        "--task", "acronym", "--model", model, "--out", out, "--alpha", "0.003", "--quiet", "--resume", "--force",
        "--patching-prompts", "20", "--selection-prompts", "150", "--test-prompts", "20",
    ]  # fmt: skip


def kill(child: Child, when: Callable[[], bool]) -> bool:
    """Kill it as soon as something is so; False where it was quicker."""
    wait_until(when, child.is_running)
    os.kill(child.pid, signal.SIGKILL)  # nobody has asked for it yet, so the number is its own
    code, _, err = child.wait()
    assert code in (0, -signal.SIGKILL), err
    return code != 0


def test_many_kills_and_the_same_bytes(nursery: Nursery, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    model, name = make_checkpoint(n_layer=5, n_head=4, initializer_range=0.2), "m.onnx"
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    start = time.perf_counter()
    assert nursery.run(job(model, tmp_path / "whole" / name))[0] == 0
    manifest = Manifest.load(tmp_path / "whole" / "m.json")
    assert manifest.circuit["heads"] and manifest.circuit["mlps"]
    searching = manifest.seconds
    until_written = time.perf_counter() - start - searching["measure"]
    rng, out, kills, decided = random.Random(0), tmp_path / "killed" / name, 0, [0]
    journal = out.with_name("m.onnx.journal")
    while kills < (20 if THOROUGH else 2):
        moment = time.perf_counter() + rng.uniform(0, until_written)
        if kill(nursery.start(job(model, out)), lambda at=moment: time.perf_counter() > at):
            kills += 1
            if journal.exists():
                decided.append(max(0, journal.read_bytes().count(b"\n") - 1))
                assert decided == sorted(decided)  # no decision is ever lost
            else:  # not begun, or written out whole already: the next run starts over
                decided = [0]
        else:  # it was quicker than the kill: what it left is whole, and the next run starts over
            assert_same_result(out, tmp_path / "whole" / name)
            decided = [0]
    assert nursery.run(job(model, out))[0] == 0
    assert_same_result(out, tmp_path / "whole" / name)


def assert_same_result(out: Path, expected: Path) -> None:
    assert Circuit.load(out.with_suffix(".json")) == Circuit.load(expected.with_suffix(".json"))
    assert out.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.json", "m.onnx"]


def test_the_journal_of_other_options_is_refused(
    nursery: Nursery, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    model, out = make_checkpoint(n_layer=5, n_head=4, initializer_range=0.2), tmp_path / "m.onnx"
    journal = tmp_path / "m.onnx.journal"
    begun = kill(nursery.start(job(model, out)), lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2)
    assert begun
    before = journal.read_bytes()
    run.fails(3, "is of another search: its alpha is", *job(model, out), "--alpha", "0.5")
    journal.write_bytes(before.replace(b"alpha", b"Alpha"))
    run.fails(3, "is damaged in line 1", *job(model, out))


BRIEFLY = """
from exporter.search import rounds
rounds.LEAST_ROUND, rounds.MOST_STEPS = 6, 12
"""


def gradual_job(model: object, out: Path, *more: object) -> list[object]:
    return [
        "--task", "acronym", "--model", model, "--out", out, "--quiet", "--resume", "--force", "--max-kl", "2",
        "--patching-prompts", "100", "--selection-prompts", "40", "--test-prompts", "20", *more,
    ]  # fmt: skip


def read_result(folder: Path) -> dict[str, object]:
    """Every file by name; of a manifest, all but times."""
    timed = ("seconds", "latency")  # what is measured anew
    return {
        path.name: {key: value for key, value in json.loads(path.read_text()).items() if key not in timed}
        if path.suffix == ".json"
        else path.read_bytes()
        for path in folder.glob("[!.]*")
    }


@pytest.mark.slow
def test_many_kills_of_a_gradual_search_and_the_same_bytes(nursery: Nursery, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert nursery.run(gradual_job("bundled", tmp_path / "whole" / "m.onnx"), first=BRIEFLY)[0] == 0
    expected = read_result(tmp_path / "whole")
    assert len(expected) == 3  # the healed weights, too
    rng, out, kills = random.Random(0), tmp_path / "killed" / "m.onnx", 0
    journal = out.with_name("m.onnx.journal")

    def is_due(n_lines: int, more: list[float]) -> bool:
        """Whether there are as many lines, and some looks more have been taken."""
        with suppress(FileNotFoundError):
            if journal.read_bytes().count(b"\n") >= n_lines:
                more[0] -= 1
        return more[0] < 0

    n_lines = 1
    while kill(
        nursery.start(gradual_job("bundled", out), first=BRIEFLY), partial(is_due, n_lines, [rng.uniform(0, 300)])
    ):
        kills += 1
        if not journal.exists():  # it was about to end
            break
        found = journal.read_bytes().count(b"\n")
        assert found >= n_lines  # no size is ever lost
        n_lines = found + rng.randint(1, 3)
    assert kills > 1
    assert read_result(out.parent) == expected


def test_a_gradual_search_is_resumed_with_the_same_options_alone(
    nursery: Nursery, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    model, out = make_checkpoint(n_layer=3, n_head=4, n_embd=32), tmp_path / "m.onnx"
    journal = tmp_path / "m.onnx.journal"
    begun = kill(
        nursery.start(gradual_job(model, out), first=BRIEFLY),
        lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1,
    )
    assert begun
    before = read_result(tmp_path)
    other = {
        ("--seed", "1"): "its (prompts|seed) is", ("--heal", "none"): "its heal is",
        ("--teacher", "both"): "its teacher is",
        ("--max-kl", "1"): "its budget is", ("--max-latency-ms", "9"): "its budget is",
    }  # fmt: skip
    for options, message in other.items():
        run.fails(3, f"is of another search: {message}", *gradual_job(model, out, *options))
    bare = [option for option in gradual_job(model, out) if option not in ("--max-kl", "2")]
    run.fails(3, "is of a gradual search, and this one is greedy", *bare, "--preset", "paper")
    assert read_result(tmp_path) == before
    for weights in tmp_path.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    for dry in ([], ["--dry-run"]):
        run.fails(3, "is damaged; start over without --resume", *gradual_job(model, out, *dry))
