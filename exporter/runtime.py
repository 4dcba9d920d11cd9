"""ONNX Runtime sessions: opened in one place, with threads pinned and the provider asserted.

What a file takes is read from its inputs: `read_form` is the one place that tells the forms apart.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError, MissingRuntimeError
from exporter.graph_options import Form

if TYPE_CHECKING:
    import onnxruntime

Arrays = dict[str, np.ndarray[Any, Any]]

# in metadata_props, beside what `manifest.Origin` writes
MAX_LENGTH_KEY = "export_circuit.max_length"  # the longest sequence that the model computes
VOCAB_SIZE_KEY = "export_circuit.vocab_size"  # how many token ids there are
ANSWER_IDS_KEY = "export_circuit.answer_token_ids"  # JSON list: the token of each logit, where not all are there
EXAMPLES_KEY = "export_circuit.examples"  # JSON: some prompts and what the circuit answers, see `Examples`
IN_VOCABULARY = "in_vocabulary"  # an output, false for each prompt that the model was not made for
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


def has_int8_sums() -> bool:
    """Whether this processor sums int8 products in 32 bits; x86 without VNNI does in 16, which saturate."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and "_vnni" in info.read_text(encoding="utf-8", errors="replace")


def has_provider(provider: str) -> bool:
    """Whether ONNX Runtime is there and was built with a provider, `cpu` or `cuda`."""
    return PROVIDERS[provider] in import_onnxruntime().get_available_providers()


def open_session(
    path: str | Path, *, provider: str = "cpu", threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on one provider, without falling back to another one.

    `threads` pins the intra-op threads (None: one for each core). Raises MissingRuntimeError when the
    provider is not there, InputError when ONNX Runtime refuses the file.
    """
    ort = import_onnxruntime()
    name = PROVIDERS[provider]
    if not has_provider(provider):
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
        if any(text in str(error).lower() for text in ("external data", "external initializer")):
            raise InputError(
                f"{path} has its weights in a file beside it that is missing or too short; put the two side by side, "
                "or export again"
            ) from error
        first = str(error).splitlines()[0][:200]
        raise InputError(f"ONNX Runtime cannot load {Path(path).name}: {first}") from error
    if session.get_providers()[0] != name:
        raise MissingRuntimeError(f"ONNX Runtime placed the model on {session.get_providers()[0]}, not on {name}")
    return session


def read_form(session: onnxruntime.InferenceSession) -> Form:
    """Which form a file has (see `graph`): with past, there is a mask over more tokens than come in."""
    return name_form({value.name: value.shape for value in session.get_inputs()})


def name_form(inputs: Mapping[str, Sequence[str | int]]) -> Form:
    """The form of a graph with these inputs, shapes by name."""
    if "attention_mask" not in inputs:
        return "plain"
    return "masked" if inputs["attention_mask"] == inputs["input_ids"] else "past"


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
        empty = np.zeros((batch, n_kv, 0, d_head), np.float16 if "float16" in value.type else np.float32)
        feeds[value.name] = past.get(value.name, empty)
    presents = [value.name.replace("past_key_values", "present") for value in cached]
    known = [IN_VOCABULARY] if any(value.name == IN_VOCABULARY for value in session.get_outputs()) else []
    logits, *others = session.run(["logits", *known, *presents], feeds)
    if known and not others.pop(0).all():
        raise InputError(
            "a prompt has tokens that this model was not made for (its output in_vocabulary is false); "
            "give prompts of its task, or export with --vocab full"
        )
    return logits, {value.name: array for value, array in zip(cached, others, strict=True)}


def read_vocab_size(session: onnxruntime.InferenceSession) -> int:
    """How many token ids the model knows."""
    text = session.get_modelmeta().custom_metadata_map.get(VOCAB_SIZE_KEY, "")
    return int(text) if text.isdigit() else int(session.get_outputs()[0].shape[2])


def read_answer_ids(session: onnxruntime.InferenceSession) -> np.ndarray[Any, Any] | None:
    """The token of each logit, (answer,) int64; None where every token has one."""
    text = session.get_modelmeta().custom_metadata_map.get(ANSWER_IDS_KEY)
    return None if text is None else np.array(json.loads(text), np.int64)


def read_max_length(session: onnxruntime.InferenceSession) -> int | None:
    """The longest sequence that the model computes; None for a file that does not say."""
    pos = session.get_inputs()[0].shape[1]
    if isinstance(pos, int):
        return pos
    text = session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH_KEY, "")
    return int(text) if text.isdigit() else None
