"""Processes that start in no time, to be struck, killed, or joined: forks of one that has imported everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# For each line: fork a child with its own output, environment and code to run first, which then is the command line;
# or wait for one.
SCRIPT = """
import gc, json, os, sys, tempfile
os.environ["MKL_CBWR"] = "AUTO"  # as the command line sets it, before anything is computed
import exporter.cli.display, exporter.cli.main, exporter.job.rehearsal, exporter.job.run
import onnxruntime, scipy.stats, torch, torch.distributed
from briefly import be_brief
from exporter import __main__
from exporter.loading.load import load_model
load_model("bundled")  # what is imported late
be_brief()
gc.collect()
gc.freeze()  # what is here is no garbage, and not looked through
gc.set_threshold(50_000, 20, 50)
for line in sys.stdin:
    task = json.loads(line)
    if isinstance(task, int):
        print(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    for stream, path in enumerate((os.devnull, task["out"], task["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
    os.environ.update(task["env"])
    tempfile.tempdir = None  # where TMPDIR is another
    exec(task["first"])
    os._exit(__main__.run_command(task["arguments"]))
"""


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Child:
    """A process that was started, and the files with what it says."""

    nursery: Nursery
    pid: int
    out: Path
    err: Path

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def wait(self) -> tuple[int, str, str]:
        """Its exit code or the signal that ended it, stdout and stderr; once."""
        code = self.nursery.ask(self.pid)
        return code, self.out.read_text(), self.err.read_text()


class Nursery:
    """The process that forks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_started = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"},
        )  # fmt: skip

    def ask(self, task: object) -> int:
        """One line there, one number back; without an answer it is dead."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, arguments: Sequence[object], *, first: str = "", **env: str) -> Child:
        """A child with this command line; `first` is code that it runs before."""
        self.n_started += 1
        out, err = (self.folder / f"{self.n_started}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()  # they are read before the child has opened them
        task = {"arguments": [str(a) for a in arguments], "first": first, "env": env, "out": str(out), "err": str(err)}
        return Child(self, self.ask(task), out, err)

    def run(self, arguments: Sequence[object], *, first: str = "", **env: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a child with this command line."""
        return self.start(arguments, first=first, **env).wait()

    def close(self) -> None:
        """End it; a child that was not waited for goes on."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
