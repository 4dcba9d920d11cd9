"""Several processes search together: the same circuit, and a clean end when one of them dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from nursery import Child, Nursery
from tiny import make_prompts
from waits import HANG, wait_until

from exporter.circuit import load_circuit
from exporter.errors import InputError
from exporter.search.ranks import SOLO, Ranks

ROOT = Path(__file__).parents[2]


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


def start_ranks(nursery: Nursery, arguments: list[object], *, dying: str = "", both: str = "") -> list[Child]:
    """Two ranks without torchrun; code for the second one, and for both of them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        nursery.start(arguments, first=both + (dying if rank == "1" else ""), RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]


def assert_same_search(one: Path, two: Path) -> None:
    (circuit, alone), (same, together) = load_circuit(one), load_circuit(two)
    assert circuit == same
    assert [s.removed for s in alone.trace] == [s.removed for s in together.trace]
    assert [s.kl_without for s in together.trace] == pytest.approx([s.kl_without for s in alone.trace], abs=1e-6)


DYING = """
import signal
from exporter.search.objective import KLObjective
price, calls = KLObjective.price, []
def die(*arguments):
    calls.append(None)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return price(*arguments)
KLObjective.price = die
"""


@pytest.mark.slow
def test_two_processes_find_the_circuit_of_one_also_after_one_died(
    tmp_path: Path, make_checkpoint: Callable[..., Path], nursery: Nursery
) -> None:
    model = make_checkpoint(n_layer=3, n_head=4)
    two = job(model, tmp_path / "two.onnx", prompts=31)
    assert nursery.run(job(model, tmp_path / "one.onnx", prompts=31)) == (0, "", "")
    (code, out, err), (killed, _, _) = [child.wait() for child in start_ranks(nursery, two, dying=DYING)]
    assert (code, out, killed) == (6, "", -signal.SIGKILL)
    assert re.fullmatch("export-circuit: error: .*\n", err), err
    assert not (tmp_path / "two.onnx").exists()
    assert (tmp_path / "two.onnx.journal").read_bytes().count(b"\n") >= 4
    assert [child.wait() for child in start_ranks(nursery, [*two, "--resume"])] == [(0, "", "")] * 2
    assert_same_search(tmp_path / "one.json", tmp_path / "two.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.onnx", "two.json", "two.onnx"]


@pytest.mark.slow
def test_torchruns_processes_find_the_circuit_of_one(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    model = make_checkpoint(n_layer=5, n_head=4)
    together = torchrun(*job(model, tmp_path / "two.onnx", prompts=31))
    out, err = together.communicate(timeout=HANG)
    assert together.returncode == 0, err
    assert out == ""
    command = [sys.executable, "-m", "exporter", *map(str, job(model, tmp_path / "one.onnx", prompts=31))]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert_same_search(tmp_path / "one.json", tmp_path / "two.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.onnx", "two.json", "two.onnx"]


@pytest.mark.slow
def test_when_a_rank_of_torchrun_dies_all_end_soon_and_the_search_goes_on(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    model, out = make_checkpoint(n_layer=8, n_head=8, n_embd=64), tmp_path / "m.onnx"
    journal = tmp_path / "m.onnx.journal"
    together = torchrun(*job(model, out, prompts=250))
    begun = wait_until(
        lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4, lambda: together.poll() is None
    )
    assert begun, together.communicate()
    for child in psutil.Process(together.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.send_signal(signal.SIGKILL)
    _, err = together.communicate(timeout=HANG)  # nobody waits for the dead one
    assert together.returncode != 0
    assert "export-circuit: " in err
    assert not out.exists()
    assert journal.read_bytes().count(b"\n") >= 4
    again = torchrun(*job(model, out, prompts=250), "--resume")
    _, err = again.communicate(timeout=HANG)
    assert again.returncode == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.onnx"]


BRIEFLY = """
from exporter.search import rounds
rounds.LEAST_ROUND, rounds.MOST_STEPS = 6, 12
"""
DYING_WHILE_HEALING = """
import signal
from exporter.search.healing import Healer
step, calls = Healer._take_step, []
def die(*arguments):
    calls.append(None)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
Healer._take_step = die
"""


@pytest.mark.slow
def test_a_gradual_search_of_two_processes_ends_alike_each_time_and_with_a_rank_that_dies(
    tmp_path: Path, make_checkpoint: Callable[..., Path], nursery: Nursery
) -> None:
    model = make_checkpoint(n_layer=3, n_head=4)
    options = [
        "--task", "acronym", "--model", model, "--max-params", "30%", "--quiet",
        "--patching-prompts", "40", "--selection-prompts", "20", "--test-prompts", "20",
    ]  # fmt: skip
    for name in ("one", "two"):
        ranks = start_ranks(nursery, [*options, "--out", tmp_path / f"{name}.onnx"], both=BRIEFLY)
        assert [child.wait() for child in ranks] == [(0, "", "")] * 2
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    dying = start_ranks(nursery, [*options, "--out", tmp_path / "three.onnx"], dying=DYING_WHILE_HEALING, both=BRIEFLY)
    (code, out, err), (killed, _, _) = [child.wait() for child in dying]
    assert (code, out, killed) == (6, "", -signal.SIGKILL)
    assert "another process of this search died" in err
    assert not (tmp_path / "three.onnx").exists()
    assert (tmp_path / "three.onnx.journal").read_bytes().count(b"\n") >= 2
    assert len(list(tmp_path.glob("three.onnx.journal-*.safetensors"))) == 1
    again = start_ranks(nursery, [*options, "--out", tmp_path / "three.onnx", "--resume"], both=BRIEFLY)
    assert [child.wait() for child in again] == [(0, "", "")] * 2
    assert (tmp_path / "three.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()
    assert not list(tmp_path.glob("*.journal*"))
