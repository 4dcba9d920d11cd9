"""ONNX Runtime sessions: opened in one place, with threads pinned and the provider asserted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError, MissingRuntimeError

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INSTALL = "pip install 'export-circuit[cpu]' (or 'export-circuit[gpu]' for CUDA)"


def import_onnxruntime() -> Any:
    """The onnxruntime module; raises MissingRuntimeError that says what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingRuntimeError(f"ONNX Runtime is not installed; {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two wheels is uninstalled
        raise MissingRuntimeError(f"ONNX Runtime is broken: pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL}")
    return onnxruntime


def open_session(
    path: str | Path, *, provider: str = "cpu", threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on one provider, without falling back to another one.

    `threads` pins the intra-op threads (None: one for each core). Raises MissingRuntimeError when the
    provider is not there, InputError when ONNX Runtime refuses the file.
    """
    ort = import_onnxruntime()
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise MissingRuntimeError(
            f"ONNX Runtime here has no {name}; uninstall onnxruntime and pip install 'export-circuit[gpu]'"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings would mix with ours
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[name])
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        first = str(error).splitlines()[0][:200]
        raise InputError(f"ONNX Runtime cannot load {Path(path).name}: {first}") from error
    if session.get_providers()[0] != name:
        raise MissingRuntimeError(f"ONNX Runtime placed the model on {session.get_providers()[0]}, not on {name}")
    return session


def run_logits(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Logits for (batch, pos) int64 token ids; mask, (batch, pos) bool, is False at padding."""
    feeds = {"input_ids": input_ids}
    if any(value.name == "attention_mask" for value in session.get_inputs()):
        feeds["attention_mask"] = np.ones_like(input_ids) if mask is None else mask.astype(np.int64)
    else:
        assert mask is None or mask.all(), "this model takes no mask"
    logits: np.ndarray[Any, Any] = session.run(["logits"], feeds)[0]
    return logits
