"""Forced overwrites killed at random moments, with readers beside: old or new, and nothing that stays in the way.

`EXPORT_CIRCUIT_KILLS=200` makes it as many kills as the design asks for (some ten minutes); the suite does a few.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import SMALL
from nursery import Nursery
from untrusted import hash_tree

from exporter.cli.inspection import inspect_file
from exporter.errors import InputError
from exporter.files import is_weights_name
from exporter.files.onnx_file import read_onnx
from exporter.outputs.bundle import is_bundle
from exporter.outputs.manifest import Manifest, hash_file

KILLS = int(os.environ.get("EXPORT_CIRCUIT_KILLS", "8"))
CIRCUITS = ('{"heads": [[0, 1], [1, 0]], "mlps": [1]}', '{"heads": [[1, 1]], "mlps": [0, 1]}')

# Killed at its n-th file operation, or at a time.
AT_OPERATION = """
import signal
left = [{operation}]
def watch(function):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("rename", "link", "unlink", "fsync", "rmdir", "mkdir"):
    setattr(os, name, watch(getattr(os, name)))
"""
AT_TIME = """
import signal, threading
threading.Timer({seconds}, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
"""

# Reads until its standard input ends; one line for each thing that should not be.
READER = """
import select, sys
from pathlib import Path
from exporter.cli.inspection import inspect_file
from exporter.errors import InputError
from exporter.runtime.prompting import open_decoder
files, reads = [Path(name) for name in sys.argv[1:]], 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for file in files:
        for read in (inspect_file, *([open_decoder] if file.parent.name == "b" else [])):
            try:
                found = read(file)
                if getattr(found, "note", None): print(found.note, flush=True)
            except InputError as error:
                if "no file" not in str(error): print(error, flush=True)
    reads += 1
print("reads", reads, flush=True)
"""


@contextmanager
def process(script: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


FORMS = {
    "plain": ("--out", "m.onnx"),
    "external": ("--out", "m.onnx", "--external-data"),
    "bundle": ("--bundle", "b"),
    "both": ("--out", "m.onnx", "--bundle", "b"),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_old_or_new_after_any_kill(
    form: str, tmp_path: Path, make_checkpoint: Callable[..., Path], nursery: Nursery
) -> None:
    model, rng, work = make_checkpoint(), random.Random(form), tmp_path / "work"
    work.mkdir()
    for number, text in enumerate(CIRCUITS):
        (tmp_path / f"{number}.json").write_text(text)

    def job(number: int) -> list[str]:
        places = [str(work / word) if not word.startswith("--") else word for word in FORMS[form]]
        circuit = ["--task", "acronym", "--model", str(model), "--circuit", str(tmp_path / f"{number}.json")]
        return [*circuit, *places, *SMALL, "--quiet", "--force"]

    reads = [work / "m.onnx"] * (form != "bundle") + [work / "b" / "model.onnx"] * (form in ("bundle", "both"))
    known: set[str] = set()
    for number in (0, 1):
        start = time.perf_counter()
        assert nursery.run(job(number)) == (0, "", "")
        duration = time.perf_counter() - start
        known |= {hash_file(path).sha256 for path in reads}
    kills, versions = 0, set()
    with process(READER, *reads) as reader:
        for turn in itertools.count():
            if kills >= KILLS / len(FORMS):
                break
            aimed = turn % 2 == 0  # at the moments in which files are moved, or at any
            at_operation = AT_OPERATION.format(operation=rng.randint(1, 60))
            strike = at_operation if aimed else AT_TIME.format(seconds=rng.uniform(0, 1.2 * duration))
            code, _, err = nursery.run(job(rng.randint(0, 1)), first=strike)
            assert code in (0, -signal.SIGKILL), (turn, err)
            kills += code != 0
            before = hash_tree(work)
            for path in reads:
                versions.add(check_whole(path, known))
            assert hash_tree(work) == before
        assert nursery.run(job(0)) == (0, "", "")  # nothing stands in the way
        out, _ = reader.communicate("")
    assert out.startswith("reads "), out
    assert int(out.split()[1]) > 0
    assert len(versions - {None}) >= (2 if KILLS >= 100 else 1)  # both, once there are enough kills
    names = {path.name for path in work.iterdir()}
    assert {name for name in names if not is_weights_name(name, "m.onnx")} == {
        *(("m.onnx", "m.json") if form != "bundle" else ()), *(("b",) if form in ("bundle", "both") else ())
    }  # fmt: skip
    assert len(names) == {"plain": 2, "external": 3, "bundle": 1, "both": 3}[form]


def check_whole(path: Path, known: set[str]) -> str | None:
    """The version that stands there, or None; it is one of the known ones, and its manifest is its own or missing."""
    if path.parent.name == "b":
        if not path.parent.exists():
            return None
        assert is_bundle(path.parent)
    try:
        graph = read_onnx(path)
    except InputError:
        assert not path.exists()
        return None
    assert graph.sha256 in known
    assert inspect_file(path).note is None
    beside = path.with_suffix(".json")
    if beside.exists():
        for name, info in Manifest.load(beside).files.items():
            assert hash_file(path.with_name(name)) == info, name
    return graph.sha256
