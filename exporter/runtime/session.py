"""ONNX Runtime sessions: opened in one place, with a thread count and a check of the execution provider.

A file's form follows from the shapes of its inputs: `name_form` is the only code that tells the forms apart.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError, MissingRuntimeError
from exporter.files.reading import require_regular
from exporter.graph.guards import GUARDS, REMEDIES, SCOPE_DISTANCE, TEXT_GUARDS
from exporter.graph.int8 import EVERYWHERE
from exporter.graph.metadata import ANSWER_IDS_KEY, MAX_LENGTH_KEY, PROCESSORS_KEY, VOCAB_SIZE_KEY
from exporter.graph.options import Form

if TYPE_CHECKING:
    import onnxruntime

Arrays = dict[str, np.ndarray[Any, Any]]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INSTALL = "pip install 'export-circuit[cpu]' (or 'export-circuit[gpu]' for CUDA)"


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises MissingRuntimeError: it is not installed, or broken; says what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingRuntimeError(f"ONNX Runtime is not installed; {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # two wheels share the folder, one was uninstalled
        raise MissingRuntimeError(f"ONNX Runtime is broken: pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL}")
    return onnxruntime


def has_int8_sums() -> bool:
    """Whether this processor sums int8 products in 32 bits; x86 without VNNI uses 16-bit sums, which saturate."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and "_vnni" in info.read_text(encoding="utf-8", errors="replace")


def has_provider(provider: str) -> bool:
    """Whether the installed ONNX Runtime has a provider, `cpu` or `cuda`.

    Raises MissingRuntimeError: ONNX Runtime is not installed.
    """
    return PROVIDERS[provider] in import_onnxruntime().get_available_providers()


def open_session(
    path: str | Path, *, provider: str = "cpu", threads: int | None = None, spin: bool = True
) -> onnxruntime.InferenceSession:
    """A session on one provider, `cpu` or `cuda`, without fallback to another one.

    `threads`: number of intra-op threads (None: ONNX Runtime's default, one per core). `spin`: whether idle threads
    wait busily, which wakes them sooner, and takes processor time from all others. Raises MissingRuntimeError: the
    provider is missing. Raises InputError: ONNX Runtime cannot load the file, or its int8 sums
    would saturate here.
    """
    require_regular(path)
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
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
    processors = session.get_modelmeta().custom_metadata_map.get(PROCESSORS_KEY, EVERYWHERE)
    if provider == "cpu" and processors != EVERYWHERE and not has_int8_sums():
        raise InputError(
            f"{Path(path).name} is exact on {processors} only, and this processor is none of them: its 16-bit sums of "
            "int8 products would saturate; export with --int8-weights uint8 or int7"
        )
    return session


def read_form(session: onnxruntime.InferenceSession) -> Form:
    """The form of a session's file (see `exporter.graph.author`)."""
    return name_form({value.name: value.shape for value in session.get_inputs()})


def name_form(inputs: Mapping[str, Sequence[str | int]]) -> Form:
    """The form of a graph, from its inputs' shapes by name.

    Only "past" has an attention_mask that is longer than input_ids, since it also covers earlier calls.
    """
    if "attention_mask" not in inputs:
        return "plain"
    return "masked" if inputs["attention_mask"] == inputs["input_ids"] else "past"


def run_logits(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Logits for (batch, pos) int64 token ids in one call: (batch, pos or 1, vocab or answer).

    mask, (batch, pos) bool, is False at padding. For measuring, so prompts out of scope are answered too. Raises
    InputError as `run_step` does.
    """
    mask = np.ones(input_ids.shape, bool) if mask is None else mask
    return run_step(session, input_ids, mask, {}, guards=TEXT_GUARDS)[0]


def run_in_steps(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any] | None = None,
    *,
    single: int,
) -> np.ndarray[Any, Any]:
    """Logits as from `run_logits`, of a model with past whose last `single` tokens are fed one by one.

    At least the first token is in the first call. Raises InputError as `run_step` does.
    """
    length = input_ids.shape[1]
    bounds = [0, *range(max(1, length - single), length + 1)]
    mask = np.ones(input_ids.shape, bool) if mask is None else mask
    parts: list[np.ndarray[Any, Any]] = []
    past: Arrays = {}
    for start, end in pairwise(bounds):
        logits, past = run_step(session, input_ids[:, start:end], mask[:, :end], past, guards=TEXT_GUARDS)
        parts.append(logits)
    return np.concatenate(parts, axis=1)


def run_step(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    past: Mapping[str, np.ndarray[Any, Any]],
    *,
    guards: Collection[str] = tuple(GUARDS),
) -> tuple[np.ndarray[Any, Any], Arrays]:
    """One call: logits (batch, pos or 1, vocab or answer), and keys and values, the `past` of the next call.

    input_ids: (batch, pos) int64. mask: (batch, past + pos) bool, False at padding; all True for a plain model.
    A classifier's logits, (batch, class), come as (batch, 1, class). `past`: returned by the previous call; empty for
    the first one. Raises InputError: one of `guards` that the file has is false for a prompt.
    """
    logits, present, seen = call_step(session, input_ids, mask, past, guards=guards)
    require_guards(seen)
    return logits, present


def require_guards(seen: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise InputError where a guard, (batch,) bool by its name, is false for a prompt."""
    for name, holds in seen.items():
        if not holds.all():
            raise InputError(
                f"{GUARDS[name]}: a prompt is one that it was not made for (its output {name} is false); "
                f"{REMEDIES[name]}"
            )


def call_step(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    past: Mapping[str, np.ndarray[Any, Any]],
    *,
    guards: Collection[str],
) -> tuple[np.ndarray[Any, Any], Arrays, Arrays]:
    """`run_step` that raises nothing: also returns what those of `guards` that the file has say, (batch,) by name."""
    feeds, cached = make_feeds(session, input_ids, mask, past), _find_cached(session)
    names = {value.name for value in session.get_outputs()}
    asked = [name for name in guards if name in names]
    presents = [value.name.replace("past_key_values", "present") for value in cached]
    logits, *others = session.run(["logits", *asked, *presents], feeds)
    seen = dict(zip(asked, others, strict=False))
    if logits.ndim == 2:  # a classifier's
        logits = logits[:, None]
    kept = zip(cached, others[len(asked) :], strict=True)
    return logits, {value.name: array for value, array in kept}, seen


def run_guards(
    session: onnxruntime.InferenceSession, input_ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None
) -> Arrays:
    """What the file's guards say of prompts: by name (batch,) bool, and scope_distance, (batch,) float32, beside.

    input_ids and mask as in `run_logits`.
    """
    names = {value.name for value in session.get_outputs()} & {*GUARDS, SCOPE_DISTANCE}
    asked = sorted(names)
    feeds = make_feeds(session, input_ids, np.ones(input_ids.shape, bool) if mask is None else mask, {})
    return dict(zip(asked, session.run(asked, feeds), strict=True)) if asked else {}


def make_feeds(
    session: onnxruntime.InferenceSession,
    input_ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    past: Mapping[str, np.ndarray[Any, Any]],
) -> Arrays:
    """The inputs of one call by name, as `run_step` describes them; an empty past where none is given."""
    feeds: Arrays = {"input_ids": input_ids}
    if read_form(session) == "plain":
        assert mask.all(), "this model takes no mask"
    else:
        feeds["attention_mask"] = mask.astype(np.int64)
    if any(value.name == "position_ids" for value in session.get_inputs()):
        feeds["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, mask.shape[1] - input_ids.shape[1] :]
    for value in _find_cached(session):
        batch, (_, n_kv, _, d_head) = len(input_ids), value.shape
        empty = np.zeros((batch, n_kv, 0, d_head), np.float16 if "float16" in value.type else np.float32)
        feeds[value.name] = past.get(value.name, empty)
    return feeds


def _find_cached(session: onnxruntime.InferenceSession) -> list[Any]:
    """The inputs that take keys and values of earlier calls."""
    return [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]


def read_vocab_size(session: onnxruntime.InferenceSession) -> int:
    """The size of the dense model's vocabulary: from the metadata, else the width of the logits."""
    text = session.get_modelmeta().custom_metadata_map.get(VOCAB_SIZE_KEY, "")
    return int(text) if text.isdigit() else int(_named(session.get_outputs(), "logits").shape[-1])


def read_answer_ids(session: onnxruntime.InferenceSession) -> np.ndarray[Any, Any] | None:
    """The token id of each logit, (answer,) int64; None where logits cover the whole vocabulary.

    Raises InputError: the file's metadata is damaged.
    """
    text = session.get_modelmeta().custom_metadata_map.get(ANSWER_IDS_KEY)
    try:
        return None if text is None else np.array(json.loads(text), np.int64).reshape(-1)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("the file's answer tokens are damaged; export it again") from error


def read_max_length(session: onnxruntime.InferenceSession) -> int | None:
    """The longest sequence that the file accepts, in tokens; None for a file that does not say."""
    pos = _named(session.get_inputs(), "input_ids").shape[1]
    if isinstance(pos, int):
        return pos
    text = session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH_KEY, "")
    return int(text) if text.isdigit() else None


def _named(values: Sequence[Any], name: str) -> Any:
    """The input or output with this name."""
    return next(value for value in values if value.name == name)
