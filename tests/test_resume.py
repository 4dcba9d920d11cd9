"""Killed at any moment, a job goes on where it was and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Run

from exporter.circuit import Circuit
from exporter.manifest import Manifest

# Imports everything once and then forks a child for each command line that it reads: a job starts in no time.
NURSERY = """
import json, os, sys
import exporter.cli.main, exporter.pipeline, exporter.cli.display
from exporter.__main__ import run_command
exporter.pipeline.LATENCY_BLOCKS = 2
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os._exit(run_command(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Runs command lines in processes that may be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments: object, kill_when: Callable[[], bool] | None = None) -> int:
        """The exit code; SIGKILL comes as soon as something is so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(a) for a in arguments]), file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        if kill_when is not None:
            while not kill_when():
                time.sleep(0.002)
            with suppress(ProcessLookupError):  # it was quicker
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.process.stdin.close()
    found.process.wait()


def job(model: Path, out: Path) -> list[object]:
    return [
        "--task", "acronym", "--model", model, "--out", out, "--alpha", "0.003", "--quiet", "--resume", "--force",
        "--patching-prompts", "20", "--selection-prompts", "150", "--test-prompts", "20",
    ]  # fmt: skip


def test_twenty_kills_and_the_same_bytes(
    nursery: Nursery, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    model, name = make_checkpoint(n_layer=5, n_head=4, initializer_range=0.2), "m.onnx"
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    start = time.perf_counter()
    assert nursery.run(*job(model, tmp_path / "whole" / name)) == 0
    manifest = Manifest.load(tmp_path / "whole" / "m.json")
    assert manifest.circuit["heads"] and manifest.circuit["mlps"]
    searching = manifest.seconds
    until_written = time.perf_counter() - start - searching["measure"]
    rng, out, kills, decided = random.Random(0), tmp_path / "killed" / name, 0, [0]
    while kills < 20:
        moment = time.perf_counter() + rng.uniform(0, until_written)
        if nursery.run(*job(model, out), kill_when=lambda at=moment: time.perf_counter() > at) == -signal.SIGKILL:
            kills += 1
            journal = out.with_name("m.onnx.journal")
            if journal.exists():
                decided.append(max(0, journal.read_bytes().count(b"\n") - 1))
        else:  # it was quicker than the kill: what it left is whole, and the next run starts over
            assert_same_result(out, tmp_path / "whole" / name)
            assert decided == sorted(decided)  # no decision is ever lost
            decided = [0]
    assert nursery.run(*job(model, out)) == 0
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
    nursery.run(*job(model, out), kill_when=lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2)
    before = journal.read_bytes()
    run.fails(3, "is of another search: its alpha is", *job(model, out), "--alpha", "0.5")
    journal.write_bytes(before.replace(b"alpha", b"Alpha"))
    run.fails(3, "is damaged in line 1", *job(model, out))
