"""ONNX Runtime sessions: opened in one place, with threads pinned and the provider asserted.

What a file takes is read from its inputs: `read_form` is the one place that tells the forms apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporter.errors import InputError, MissingRuntimeError

if TYPE_CHECKING:
    import onnxruntime

Form = Literal["plain", "masked", "past"]
Arrays = dict[str, np.ndarray[Any, Any]]

MAX_LENGTH_KEY = "export_circuit.max_length"  # in metadata_props: the longest sequence that the model computes
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


def read_form(session: onnxruntime.InferenceSession) -> Form:
    """Which form a file has (see `graph`): with past, there is a mask over more tokens than come in."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    if "attention_mask" not in shapes:
        return "plain"
    return "masked" if shapes["attention_mask"] == shapes["input_ids"] else "past"


def run_logits(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Logits for (batch, pos) int64 token ids in one call; mask, (batch, pos) bool, is False at padding."""
    return run_step(session, input_ids, np.ones(input_ids.shape, bool) if mask is None else mask, {})[0]


def run_in_steps(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any] | None = None,
    *,
    single: int,
) -> np.ndarray[Any, Any]:
    """The logits of `run_logits` from a model with past: the last `single` tokens come one by one."""
    length = input_ids.shape[1]
    bounds = [0, *range(max(1, length - single), length + 1)]
    mask = np.ones(input_ids.shape, bool) if mask is None else mask
    parts: list[np.ndarray[Any, Any]] = []
    past: Arrays = {}
    for start, end in pairwise(bounds):
        logits, past = run_step(session, input_ids[:, start:end], mask[:, :end], past)
        parts.append(logits)
    return np.concatenate(parts, axis=1)


def run_step(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    past: Mapping[str, np.ndarray[Any, Any]],
) -> tuple[np.ndarray[Any, Any], Arrays]:
    """One call: logits (batch, pos, vocab), and the keys and values to give as `past` to the next call.

    mask: (batch, past + pos) bool, False at padding, which a plain model cannot have. `past` is what the call
    before gave, and empty for the first one.
    """
    feeds: Arrays = {"input_ids": input_ids}
    if read_form(session) == "plain":
        assert mask.all(), "this model takes no mask"
    else:
        feeds["attention_mask"] = mask.astype(np.int64)
    cached = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    for value in cached:
        batch, (_, n_kv, _, d_head) = len(input_ids), value.shape
        feeds[value.name] = past.get(value.name, np.zeros((batch, n_kv, 0, d_head), np.float32))
    presents = [value.name.replace("past_key_values", "present") for value in cached]
    logits, *present = session.run(["logits", *presents], feeds)
    return logits, {value.name: array for value, array in zip(cached, present, strict=True)}


def read_vocab_size(session: onnxruntime.InferenceSession) -> int:
    """How many token ids the model knows."""
    return int(session.get_outputs()[0].shape[2])


def read_max_length(session: onnxruntime.InferenceSession) -> int | None:
    """The longest sequence that the model computes; None for a file that does not say."""
    pos = session.get_inputs()[0].shape[1]
    if isinstance(pos, int):
        return pos
    text = session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH_KEY, "")
    return int(text) if text.isdigit() else None
