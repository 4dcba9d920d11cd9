"""What an ONNX model is timed on: prompts of one shape, how they are fed, and what must come out.

A file that carries examples (EXAMPLES_KEY) is timed on those, and its answers to them are checked; any other
on random token ids. Two models that are compared get the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import ExactnessError, InputError
from exporter.graph.metadata import ANSWER_IDS_KEY, EXAMPLES_KEY, VOCAB_SIZE_KEY
from exporter.runtime.session import Arrays, import_onnxruntime, open_session, read_max_length

if TYPE_CHECKING:
    import onnxruntime

DEFAULT_LENGTH = 16  # tokens of a random prompt, where the model is not pinned to a length
_PAST = "past_key_values."
_KNOWN = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, eq=False)
class Workload:
    """Prompts: token ids (batch, pos) int64, mask (batch, pos) bool, False at padding, which is on the left.

    `answers` (batch,) are the token ids that the circuit answers with at the last position, None where the file
    does not say.
    """

    input_ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    answers: np.ndarray[Any, Any] | None = None

    @property
    def pos(self) -> int:
        """Tokens of a prompt, padding included."""
        return int(self.input_ids.shape[1])

    def repeat(self, batch: int) -> Workload:
        """The same prompts over again, as many as `batch`."""
        rows = np.arange(batch) % len(self.input_ids)
        return Workload(self.input_ids[rows], self.mask[rows], None if self.answers is None else self.answers[rows])


class BoundModel:
    """An ONNX file that is open on one provider; `bind` gives a call of it."""

    def __init__(self, path: str | Path, *, provider: str = "cpu", threads: int | None = None) -> None:
        if not Path(path).is_file():
            raise InputError(f"no file {str(path)!r}; give an ONNX file")
        self.path = Path(path)
        self.provider = provider
        self.session = open_session(path, provider=provider, threads=threads)
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        unknown = [name for name in self.inputs if name not in _KNOWN and not name.startswith(_PAST)]
        if unknown or "input_ids" not in self.inputs or len(self.inputs["input_ids"].shape) != 2:
            raise InputError(
                f"{path} takes {', '.join(self.inputs)}; it must be a language model that takes input_ids (batch, pos)"
            )
        if all(value.name != "logits" for value in self.session.get_outputs()):
            raise InputError(f"{path} gives no logits; it must be a language model that does")
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def pinned_length(self) -> int | None:
        """The one sequence length that the graph takes, or None."""
        pos = self.inputs["input_ids"].shape[1]
        return pos if isinstance(pos, int) else None

    @property
    def vocab_size(self) -> int | None:
        """How many token ids it knows; None where the file does not say."""
        text = self.metadata.get(VOCAB_SIZE_KEY, "")
        if text.isdigit():
            return int(text)
        width = {value.name: value.shape for value in self.session.get_outputs()}.get("logits", [None])[-1]
        return width if isinstance(width, int) and not self._answers_only else None

    @property
    def _answers_only(self) -> bool:
        return ANSWER_IDS_KEY in self.metadata

    def make_feeds(self, workload: Workload) -> Arrays:
        """What the graph's inputs get for these prompts; of a model with past, none. Raises InputError."""
        ids, mask = workload.input_ids, workload.mask
        if self.pinned_length not in (None, workload.pos):
            raise InputError(f"{self.path} takes prompts of {self.pinned_length} tokens, not of {workload.pos}")
        if "attention_mask" not in self.inputs and not mask.all():
            raise InputError(f"{self.path} takes no attention_mask, but the examples are padded; export both alike")
        feeds: Arrays = {"input_ids": ids}
        if "attention_mask" in self.inputs:
            feeds["attention_mask"] = mask.astype(np.int64)
        if "position_ids" in self.inputs:
            feeds["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)  # (batch, pos)
        for name, value in self.inputs.items():
            if name.startswith(_PAST):
                _, n_kv, _, d_head = value.shape
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                feeds[name] = np.zeros((len(ids), n_kv, 0, d_head), dtype)
        return feeds

    def bind(self, workload: Workload) -> BoundCall:
        """A call on these prompts, run once and its answers checked. Raises InputError, ExactnessError."""
        bound = (_BoundToDevice if self.provider == "cuda" else BoundCall)(self.session, self.make_feeds(workload))
        try:
            bound()
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            first = str(error).splitlines()[0][:160]
            raise InputError(f"{self.path} does not run on prompts of shape {workload.input_ids.shape}: {first}") from (
                error
            )
        if workload.answers is not None:
            self._check_answers(bound.outputs(), workload.answers)
        return bound

    def _check_answers(self, outputs: Arrays, answers: np.ndarray[Any, Any]) -> None:
        """Raise ExactnessError where a prompt gets another answer than the file says."""
        logits = outputs["logits"]  # (batch, pos or 1, vocab or answer), of a classifier (batch, class)
        given = (logits if logits.ndim == 2 else logits[:, -1]).argmax(-1)  # (batch,)
        ids = outputs.get("answer_token_ids")
        if ids is None and self._answers_only:
            ids = np.array(json.loads(self.metadata[ANSWER_IDS_KEY]))
        given = given if ids is None else ids.reshape(-1)[given]
        wrong = int((given != answers).sum())
        if wrong:
            raise ExactnessError(
                f"{self.path} gives {wrong} of {len(answers)} example prompts another answer than it says of itself; "
                "export it again"
            )


class BoundCall:
    """One call of a session with what it gets. Calling it runs the model and waits until it is done."""

    def __init__(self, session: onnxruntime.InferenceSession, feeds: Arrays) -> None:
        self.session = session
        self.feeds = feeds
        self._outputs: list[np.ndarray[Any, Any]] = []

    def __call__(self) -> None:
        """Run it once."""
        self._outputs = self.session.run(None, self.feeds)

    def outputs(self) -> Arrays:
        """What the last call gave, by name."""
        return {value.name: array for value, array in zip(self.session.get_outputs(), self._outputs, strict=True)}


class _BoundToDevice(BoundCall):
    """The same on CUDA: inputs and outputs stay on the device, where outputs are allocated once."""

    def __init__(self, session: onnxruntime.InferenceSession, feeds: Arrays) -> None:
        super().__init__(session, feeds)
        ort = import_onnxruntime()
        self.binding = session.io_binding()
        for name, array in feeds.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for value in session.get_outputs():
            self.binding.bind_output(value.name, "cuda")
        session.run_with_iobinding(self.binding)
        for value, made in zip(session.get_outputs(), self.binding.get_outputs(), strict=True):
            self.binding.bind_ortvalue_output(value.name, made)

    def __call__(self) -> None:
        self.binding.synchronize_inputs()
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def outputs(self) -> Arrays:
        arrays = self.binding.copy_outputs_to_cpu()
        return {value.name: array for value, array in zip(self.session.get_outputs(), arrays, strict=True)}


def choose_workload(models: Sequence[BoundModel], *, length: int | None = None, usual: int | None = None) -> Workload:
    """Prompts that all of these models take: the first one's examples, else 32 random ones.

    `length` asks for random prompts of so many tokens; where it is None they have as many as a model is pinned to,
    else `usual`, else 16. Raises InputError when no prompts fit all of them.
    """
    text = models[0].metadata.get(EXAMPLES_KEY)
    if text is not None and length is None:
        return _read_examples(text, models[0].path)
    pinned = {model.pinned_length: model.path for model in models if model.pinned_length is not None}
    if len(pinned) > 1:
        both = " and ".join(f"{path} takes {pos}" for pos, path in pinned.items())
        raise InputError(f"{both} tokens: no prompt fits both; compare models of one length")
    longest = min((most for model in models if (most := read_max_length(model.session)) is not None), default=None)
    pos = length or next(iter(pinned), None) or usual or min(DEFAULT_LENGTH, longest or DEFAULT_LENGTH)
    if (pinned and pos not in pinned) or (longest is not None and pos > longest):
        raise InputError(f"prompts of {pos} tokens do not fit: {_say_length(pinned, longest)}; give another --length")
    sizes = [model.vocab_size for model in models if model.vocab_size is not None]
    if not sizes:
        raise InputError(f"{models[0].path} does not say how many token ids it knows; export it again")
    ids = np.random.default_rng(0).integers(0, min(sizes), (32, pos))
    return Workload(ids, np.ones(ids.shape, bool))


def _say_length(pinned: dict[int, Path], longest: int | None) -> str:
    return f"the model takes {next(iter(pinned))}" if pinned else f"the model takes at most {longest}"


def _read_examples(text: str, path: Path) -> Workload:
    """The prompts in a file's metadata. Raises InputError when they are damaged."""
    try:
        data = json.loads(text)
        ids = np.array(data["input_ids"], np.int64)
        mask = np.ones(ids.shape, bool) if data.get("attention_mask") is None else np.array(data["attention_mask"]) > 0
        answers = np.array(data["answers"], np.int64)
        if ids.ndim != 2 or not ids.size or mask.shape != ids.shape or answers.shape != ids.shape[:1]:
            raise ValueError(f"shapes {ids.shape}, {mask.shape}, {answers.shape}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the examples in the metadata of {path} are damaged ({error!r:.80}); export it again") from (
            error
        )
    return Workload(ids, mask, answers)
