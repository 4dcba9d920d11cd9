"""What an exported graph computes, beyond the model itself: its inputs, its outputs, its numbers.

Everything here but `precision` is exact: the graph gives the logits that the model gives, or fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from exporter.errors import InputError

Form = Literal["plain", "masked", "past"]
Logits = Literal["all", "last", "answers"]
Target = Literal["portable", "ort"]
Precision = Literal["fp32", "int8", "fp16", "bf16"]
Scales = Literal["tensor", "token"]
WeightType = Literal["int8", "uint8"]
_CHOICES: dict[str, Any] = {
    "form": Form,
    "logits": Logits,
    "target": Target,
    "precision": Precision,
    "scales": Scales,
    "weight_type": WeightType,
}


@dataclass(frozen=True)
class GraphOptions:
    """How a CircuitModel becomes a graph.

    form: what comes in, see `graph`. logits: at `all` positions, at the `last` one, (batch, 1, vocab), or there for
    the tokens `answer_ids` alone, (batch, 1, answer), in their order. vocabulary: the token ids that prompts can
    have, whose embeddings alone are kept; None keeps all. With them comes an output in_vocabulary, (batch,) bool, False
    for a prompt that has others, whose logits then mean nothing. length: the tokens of every prompt (plain form), None
    where it is free. opening: the token ids that every prompt starts with, computed once; in_vocabulary is False for
    a prompt that starts otherwise. target: `portable` is standard operators, `ort` may use ONNX Runtime's own.
    precision: of weights and products. scales: in int8, one scale for the activations of a whole batch, so that a
    prompt's logits depend on its batch-mates, or one for each token, so that they cannot. weight_type: in int8, how
    weights are stored; `uint8` is for x86 processors without VNNI, whose 16-bit sums of int8 products saturate.
    external_data: weights in a file of their
    own beside the graph, which ONNX Runtime maps into memory. Raises InputError for what does not go together.
    """

    form: Form = "plain"
    logits: Logits = "all"
    answer_ids: tuple[int, ...] = ()
    vocabulary: tuple[int, ...] | None = None
    length: int | None = None
    opening: tuple[int, ...] = ()
    target: Target = "portable"
    precision: Precision = "fp32"
    scales: Scales = "tensor"
    weight_type: WeightType = "int8"
    external_data: bool = False

    def to_json(self) -> dict[str, Any]:
        """The options as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphOptions:
        """What `to_json` gave; raises TypeError for other fields."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(get_args(kind))}")
        if bool(self.answer_ids) != (self.logits == "answers"):
            raise InputError("answer_ids and logits='answers' go together; give both or neither")
        if len(set(self.answer_ids)) < len(self.answer_ids):
            raise InputError("answer_ids has a token twice; give each once")
        if self.vocabulary is not None and sorted(set(self.vocabulary)) != list(self.vocabulary):
            raise InputError("vocabulary must be token ids in rising order, each once")
        if self.scales == "token" and self.precision != "int8":
            raise InputError(f"scales by token are for int8, not {self.precision}; leave them out")
        if self.vocabulary is not None and not self.vocabulary:
            raise InputError("vocabulary is empty; give the token ids that prompts can have, or None for all")
        if self.opening and (self.form != "plain" or self.logits == "all" or self.vocabulary is None):
            raise InputError(
                "an opening needs the form 'plain', logits at the last position, and a vocabulary; leave it out"
            )
