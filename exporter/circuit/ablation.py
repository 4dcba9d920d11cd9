"""Ablation: what replaces the activation of a removed component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from exporter.checks import require_choice

Kind = Literal["mean", "zero"]
By = Literal["position", "global"]
Align = Literal["left", "right"]


@dataclass(frozen=True)
class Ablation:
    """What replaces a removed component; stored in circuits, replacements and jobs (docs/ablation.md).

    kind: its mean over the patching set, or zero. by: one mean for each position, or one over prompts and positions
    together. align: the end of the prompt that positions are counted from. Raises InputError: none of the choices.
    """

    kind: Kind = "mean"
    by: By = "position"
    align: Align = "left"

    def __post_init__(self) -> None:
        require_choice("ablation", self.kind, get_args(Kind))
        require_choice("mean", self.by, get_args(By))
        require_choice("align", self.align, get_args(Align))

    @classmethod
    def take(cls, value: Any) -> Ablation:
        """`value` if it is an Ablation, else one of that kind with the other defaults. Raises InputError."""
        return value if isinstance(value, cls) else cls(kind=value)

    @property
    def fixed_length(self) -> bool:
        """Whether replacements differ by position, which limits sequences to the length of the patching prompts."""
        return self.kind == "mean" and self.by == "position"

    def to_json(self) -> dict[str, str]:
        """The fields under their names in circuit files and manifests."""
        return {"ablation": self.kind, "mean": self.by, "align": self.align}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ablation:
        """Read what `to_json` wrote; ignores other fields, missing ones take defaults. Raises InputError."""
        fields = {"kind": "ablation", "by": "mean", "align": "align"}
        return cls(**{name: data[key] for name, key in fields.items() if key in data})
