"""What one file costs in a process of its own: `python benchmarks/inference/footprint.py model.onnx prompts.npy`.

Prints one JSON line: seconds to create the session, seconds of the first inference, and the peak memory in bytes
after some runs at batch 1 and then at the largest batch in the prompts' file. Without arguments: the peak of an
ONNX Runtime process with no model, which is what the others are held against. On CUDA also the memory that the device
has less, by NVML. It imports ONNX Runtime and NumPy alone, or their memory would not be the file's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

RUNS = 5


def read_peak() -> int:
    """The most memory that this process has had, in bytes.

    Not ru_maxrss where it can be helped: Linux starts that at the peak of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_device_memory() -> int | None:
    """Bytes in use on the first GPU, of all processes; None without one, or without nvidia-ml-py."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    except Exception:  # no module, no driver, no device: all mean that there is nothing to read
        return None


def measure(model: str, prompts: str, threads: int, provider: str) -> dict[str, Any]:
    """The figures of one file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if provider != "CPUExecutionProvider":
        onnxruntime.preload_dlls()  # CUDA's libraries, which importing torch loads elsewhere
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ids = np.load(prompts)
    device_before = None if provider == "CPUExecutionProvider" else read_device_memory()
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    created = time.perf_counter()
    feeds: dict[str, Any] = {value.name: ids for value in session.get_inputs() if value.name == "input_ids"}
    for value in session.get_inputs():  # what Optimum's graphs ask for besides
        if value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    one = {name: np.ascontiguousarray(array[:1]) for name, array in feeds.items()}
    started = time.perf_counter()
    session.run(["logits"], one)
    found = {"session_ms": 1e3 * (created - start), "first_ms": 1e3 * (time.perf_counter() - started)}
    for name, batch in (("one", one), ("many", feeds)):
        for _ in range(RUNS):
            session.run(["logits"], batch)
        found[f"peak_bytes_{name}"] = read_peak()
    device_after = read_device_memory()
    if device_before is not None and device_after is not None:
        found["device_bytes"] = device_after - device_before
    return found


def main() -> None:
    """Measure the file that is named, or nothing."""
    if len(sys.argv) == 1:
        print(json.dumps({"peak_bytes_one": read_peak(), "peak_bytes_many": read_peak()}))
    else:
        model, prompts, threads, provider = sys.argv[1:]
        print(json.dumps(measure(model, prompts, int(threads), provider)))


if __name__ == "__main__":
    main()
