"""Options of an exported graph: its inputs, its outputs, its precision.

All precisions but fp32 approximate. Every other option is exact: the graph gives the model's logits, or some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from exporter.checks import require_choice, require_type, take_integer, take_integers, take_items
from exporter.errors import InputError

Form = Literal["plain", "masked", "past"]
Logits = Literal["all", "last", "answers", "classes"]
Target = Literal["portable", "ort"]
Precision = Literal["fp32", "int8", "fp16", "bf16"]
Scales = Literal["tensor", "token"]
WeightType = Literal["uint8", "int7", "int8"]
_CHOICES: dict[str, Any] = {
    "form": Form,
    "logits": Logits,
    "target": Target,
    "precision": Precision,
    "scales": Scales,
    "weight_type": WeightType,
}


OPSETS = {20: 10, 17: 8}
"""By version of ONNX's operators, `GraphOptions.opset`: the IR version of the file."""


@dataclass(frozen=True)
class GraphOptions:
    """How a CircuitModel becomes a graph.

    form: which inputs the graph has, see `exporter.graph.author`. logits: at `all` positions, (batch, pos, vocab); at
    the `last` one, (batch, 1, vocab); or there only for the tokens `answer_ids`, in their order: as a language model's,
    `answers`, (batch, 1, answer), or as a sequence classifier's, `classes`, (batch, class). labels: the classes' names,
    in the same order, each once.
    vocabulary: the token ids that prompts may contain, ascending; only their embeddings are kept; None keeps all. It
    adds an output in_vocabulary, (batch,) bool, False for a prompt with another token, whose logits are meaningless.
    length: tokens of every prompt (form `plain`); None if free. opening: token ids that every prompt starts with, whose
    keys and values are computed at export; in_vocabulary is False for a prompt with another start. target: `portable`
    uses standard operators only, `ort` also ONNX Runtime's. precision: of weights and products. scales (int8): one for
    the activations of a whole batch (`tensor`), so that a prompt's logits depend on the other prompts in the batch, or
    one for each `token`, so that they do not. weight_type (int8): how weights are stored: with `uint8`, and with
    `int7`, one bit coarser, sums are exact on every processor; with `int8` on some (`exporter.graph.int8`). in_fp32
    (int8): parts that stay in float32: sublayers by name (`a3`, the attention of layer 3; `m5`, an MLP), the embedding
    `W_E`, and `unembed`. external_data: weights in a file beside the graph, which ONNX Runtime maps into memory. guard:
    adds the outputs in_scope, (batch,) bool, False for a prompt that is not of the task, and scope_distance
    (`exporter.network.scope`), in float32. optimum (form `past`): inputs as Optimum makes them: keys and values of all
    layers have the heads of the largest, zeros beyond a layer's own, and there is an input position_ids, (batch, pos),
    which is not read, since positions are counted by the mask. opset: a key of `OPSETS`; 17 is for runtimes that know
    no later one. Raises InputError: an option of a wrong type or value, or options that conflict.
    """

    form: Form = "plain"
    logits: Logits = "all"
    answer_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    vocabulary: tuple[int, ...] | None = None
    length: int | None = None
    opening: tuple[int, ...] = ()
    target: Target = "portable"
    precision: Precision = "fp32"
    scales: Scales = "tensor"
    weight_type: WeightType = "uint8"
    in_fp32: tuple[str, ...] = ()
    external_data: bool = False
    guard: bool = False
    optimum: bool = False
    opset: int = 20

    def to_json(self) -> dict[str, Any]:
        """The options as JSON-able data, by field."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphOptions:
        """From what `to_json` returned.

        Raises TypeError: data is no mapping, or has unknown fields. Raises InputError: invalid options.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"options are an object, not {type(data).__name__}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    @property
    def answers_only(self) -> bool:
        """Whether there are logits for `answer_ids` alone."""
        return self.logits in ("answers", "classes")

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            require_choice(name, getattr(self, name), get_args(kind))
        for name in ("answer_ids", "opening"):
            object.__setattr__(self, name, take_integers(name, getattr(self, name)))
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", take_integers("vocabulary", self.vocabulary))
        if self.length is not None:
            object.__setattr__(self, "length", take_integer("length", self.length, least=1))
        for name in ("in_fp32", "labels"):
            object.__setattr__(self, name, take_items(name, getattr(self, name)))
            for part in getattr(self, name):
                require_type(f"each of {name}", part, str)
        for name in ("external_data", "guard", "optimum"):
            require_type(name, getattr(self, name), bool)
        if take_integer("opset", self.opset) not in OPSETS:
            raise InputError(f"opset is {self.opset}; choose from {', '.join(map(str, OPSETS))}")
        self._check_answers()
        if self.vocabulary is not None and sorted(set(self.vocabulary)) != list(self.vocabulary):
            raise InputError("vocabulary must be token ids in rising order, each once")
        if self.scales == "token" and self.precision != "int8":
            raise InputError(f"scales by token are for int8, not {self.precision}; leave them out")
        if self.in_fp32 and self.precision != "int8":
            raise InputError(f"in_fp32 is for int8, not {self.precision}; leave it out")
        if self.vocabulary is not None and not self.vocabulary:
            raise InputError("vocabulary is empty; give the token ids that prompts can have, or None for all")
        if self.optimum and self.form != "past":
            raise InputError(f"Optimum's inputs are for the form 'past', not {self.form!r}; leave optimum out")
        if self.opening and (self.form != "plain" or self.logits == "all" or self.vocabulary is None):
            raise InputError(
                "an opening needs the form 'plain', logits at the last position, and a vocabulary; leave it out"
            )

    def _check_answers(self) -> None:
        """Raise InputError for answers, or names of classes, that do not fit the logits."""
        if bool(self.answer_ids) != self.answers_only:
            raise InputError("answer_ids go with logits='answers' or 'classes'; give both or neither")
        if len(set(self.answer_ids)) < len(self.answer_ids):
            raise InputError("answer_ids has a token twice; give each once")
        n_labels = len(self.answer_ids) if self.logits == "classes" else 0
        if len(self.labels) != n_labels or len(set(self.labels)) < n_labels:
            raise InputError(f"there are {len(self.labels)} labels; give {n_labels}, one for each class, each once")
        if self.logits != "classes":
            return
        if n_labels < 2:
            raise InputError("there is one class, which says nothing; give two answer_ids or more")
        if self.form == "past":
            raise InputError("a classifier reads a text once and keeps no past; take another form, or logits='answers'")
