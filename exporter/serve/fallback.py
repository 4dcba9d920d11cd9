"""The dense model as a fallback: exported once at start, in a process of its own, and served by the same runtime.

Reading a checkpoint takes torch and transformers, some 500 MB of memory that a server would never give back: the child
process that writes the graph takes them with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from exporter.errors import ExportCircuitError, InputError, MissingRuntimeError
from exporter.files.scratch import make_scratch
from exporter.graph.metadata import Origin
from exporter.runtime.session import open_session, read_form
from exporter.serve.engine import Engine

_NAME = "dense.onnx"


def open_dense(model: str | Path, *, dense_model: str | None = None, threads: int | None = None) -> Engine:
    """The dense model of the file `model`, taking the same inputs; `dense_model` is where it is now, if it has moved.

    Raises InputError: it is not there, or is another one. Raises MissingRuntimeError: torch or transformers is missing.
    """
    with make_scratch() as folder:
        command = [sys.executable, "-m", __name__, str(model), str(folder / _NAME), dense_model or ""]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            kinds = {kind.exit_code: kind for kind in (InputError, MissingRuntimeError)}
            lines = done.stderr.strip().splitlines() or ["the process that reads the dense model was killed"]
            raise kinds.get(done.returncode, ExportCircuitError)(f"no fallback: {lines[-1][:300]}")
        return Engine(open_session(folder / _NAME, threads=threads, spin=False))  # mapped files outlive their names


def write_dense(model: str | Path, out: Path, *, dense_model: str | None = None) -> None:
    """Write the dense model of a file in float32, its logits at the last position. Raises InputError."""
    from exporter.graph.export import count_bytes, export_onnx, fits_one_file
    from exporter.graph.options import GraphOptions
    from exporter.outputs.reference import load_dense

    form = read_form(open_session(model))
    dense = load_dense(Origin.read(model), model=dense_model).dense
    large = not fits_one_file(count_bytes(dense))
    export_onnx(dense, out, GraphOptions(form=form, logits="last", external_data=large))


def read_memory() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _main(model: str, out: str, dense_model: str) -> int:
    """The child process."""
    try:
        write_dense(model, Path(out), dense_model=dense_model or None)
    except ExportCircuitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except ModuleNotFoundError as error:
        sys.stderr.write(f"the package {error.name} is not installed; pip install 'export-circuit[cpu,serve]'\n")
        return MissingRuntimeError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
