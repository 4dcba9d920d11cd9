"""The memory that a file takes: the peak of a process of its own, above that of one without a model.

ONNX Runtime's arena grows and gives nothing back, so a process which has run one file says nothing of another. This
module is also the script of these processes, and imports nothing but the standard library before it is asked to.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_RUNS = 5  # the arena has grown by then
_SECONDS = 600  # a process that takes longer is lost


@dataclass(frozen=True)
class Memory:
    """Peak bytes of both models' processes after some calls of so many prompts, above a process without a model."""

    batch: int
    dense: int
    circuit: int


def compare_memory(dense: Path, circuit: Path, input_ids: Tensor, mask: Tensor | None = None) -> Memory:
    """Measure two files on the same prompts, (batch, pos) int64; mask, bool, is False at padding. Takes seconds.

    Raises InputError: a process ends without an answer, or takes too long.
    """
    prompts = json.dumps([input_ids.tolist(), None if mask is None else mask.tolist()])
    nothing, *both = (_measure_peak(path, prompts) for path in (None, dense, circuit))
    return Memory(len(input_ids), *(max(0, peak - nothing) for peak in both))


def _measure_peak(model: Path | None, prompts: str) -> int:
    """The peak in bytes of a process that runs a file; of None, one that has only loaded ONNX Runtime."""
    command = [sys.executable, "-I", __file__, json.dumps(sys.path), "" if model is None else str(model)]
    from exporter.errors import InputError

    try:
        found = subprocess.run(command, input=prompts, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return int(found.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1][:200]
        raise InputError(f"the memory that {model} takes cannot be measured ({last}); leave --report out") from error


def _read_peak() -> int:
    """The most memory that this process has had, in bytes.

    Not ru_maxrss where it can be helped: Linux starts that at the peak of the process that forked this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM")), None)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else int(peak))


def _run_alone() -> None:
    """In the child: run the file that is named a few times, and print this process's peak."""
    paths, model = sys.argv[1:]
    sys.path[:] = json.loads(paths)
    import numpy as np

    from exporter.runtime.session import import_onnxruntime, open_session, run_logits

    import_onnxruntime()
    ids, mask = json.load(sys.stdin)
    if model:
        session = open_session(model)
        for _ in range(_RUNS):
            run_logits(session, np.array(ids), None if mask is None else np.array(mask))
    sys.stdout.write(f"{_read_peak()}\n")


if __name__ == "__main__":
    _run_alone()
