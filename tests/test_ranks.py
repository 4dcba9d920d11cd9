"""Several processes search together: the same circuit, and a clean end when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny import make_prompts

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.search.ranks import SOLO, Ranks

ROOT = Path(__file__).parent.parent


def torchrun(*arguments: object, processes: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return subprocess.Popen(
        [*map(str, command), "-m", "exporter", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def job(model: Path, out: Path, *, prompts: int) -> list[object]:
    return [
        "--task", "acronym", "--model", model, "--out", out, "--alpha", "0.0001", "--quiet",
        "--patching-prompts", "20", "--selection-prompts", prompts, "--test-prompts", "20",
    ]  # fmt: skip


def test_shares_are_all_prompts_and_even() -> None:
    prompts = make_prompts(11, 3)
    shares = [Ranks(rank, 4).take_share(prompts) for rank in range(4)]
    assert [len(share) for share in shares] == [2, 3, 3, 3]
    assert [row for share in shares for row in share.input_ids.tolist()] == prompts.input_ids.tolist()
    assert SOLO.take_share(prompts).input_ids.tolist() == prompts.input_ids.tolist()
    assert SOLO.sum(1.5) == 1.5
    with pytest.raises(InputError, match="3 selection prompts are too few for 4 processes"):
        Ranks(0, 4).take_share(make_prompts(3, 3))


def test_two_processes_find_the_circuit_of_one(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    model = make_checkpoint(n_layer=5, n_head=4)
    together = torchrun(*job(model, tmp_path / "two.onnx", prompts=31))
    out, err = together.communicate(timeout=180)
    assert together.returncode == 0, err
    assert out == ""
    command = [sys.executable, "-m", "exporter", *map(str, job(model, tmp_path / "one.onnx", prompts=31))]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    one, two = Circuit.load(tmp_path / "one.json"), Circuit.load(tmp_path / "two.json")
    assert (one.heads, one.mlps) == (two.heads, two.mlps)
    assert [s.removed for s in one.trace] == [s.removed for s in two.trace]
    assert [s.kl_without for s in two.trace] == pytest.approx([s.kl_without for s in one.trace], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.onnx", "two.json", "two.onnx"]


def test_when_a_rank_dies_all_end_soon_and_the_search_goes_on(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    model, out = make_checkpoint(n_layer=8, n_head=8, n_embd=64), tmp_path / "m.onnx"
    journal = tmp_path / "m.onnx.journal"
    together = torchrun(*job(model, out, prompts=250))
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        assert together.poll() is None
        time.sleep(0.01)
    for child in psutil.Process(together.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = together.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert together.returncode != 0
    assert "export-circuit: " in err
    assert not out.exists()
    assert journal.read_bytes().count(b"\n") >= 4
    again = torchrun(*job(model, out, prompts=250), "--resume")
    _, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.onnx"]
