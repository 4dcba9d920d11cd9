"""A circuit as plain data: the components that stay, how the others were ablated, and why.

A *component* is an attention head or an MLP. Everything here round-trips through JSON, so that a
circuit found on one machine can be looked at, edited by hand, and exported on another.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from exporter.errors import InputError

Ablation = Literal["mean", "zero"]
Mean = Literal["position", "global"]
Order = Literal["paper", "given"]
Align = Literal["left", "right"]


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, written `a9.h6` (layer 9, head 6, both from 0)."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"a{self.layer}.h{self.index}"


@dataclass(frozen=True, order=True)
class MLP:
    """The MLP of one layer, written `m9`."""

    layer: int

    def __str__(self) -> str:
        return f"m{self.layer}"


Component = Head | MLP


def parse_component(text: str) -> Component:
    """Read `a9.h6` or `m9`; raises InputError on anything else."""
    if match := re.fullmatch(r"a(\d+)\.h(\d+)", text):
        return Head(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"m(\d+)", text):
        return MLP(int(match[1]))
    raise InputError(f"unknown component {text!r}; write a head as 'a9.h6' and an MLP as 'm9'")


@dataclass(frozen=True)
class Decision:
    """One step of the search: the KL now, the KL without the candidate, and what was decided (nats)."""

    component: Component
    kl_before: float
    kl_without: float
    removed: bool


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """One entry of a trace."""
    return {
        "component": str(decision.component),
        "kl_before": decision.kl_before,
        "kl_without": decision.kl_without,
        "removed": decision.removed,
    }


def decision_from_json(value: Any) -> Decision:
    """Read one entry of a trace; raises InputError."""
    try:
        return Decision(
            component=parse_component(value["component"]),
            kl_before=float(value["kl_before"]),
            kl_without=float(value["kl_without"]),
            removed=bool(value["removed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a trace entry needs component, kl_before, kl_without and removed, not {value!r}") from error


@dataclass(frozen=True)
class Circuit:
    """The heads and MLPs that stay, and what replaces the rest.

    `kl` is the total KL(dense || circuit) on the selection set, in nats; None for a circuit that was
    given by hand. `align` is the end that means by position are counted from. `trace` has one entry for each
    candidate, in the order they were tried.
    """

    heads: tuple[Head, ...]
    mlps: tuple[int, ...]
    ablation: Ablation = "mean"
    mean: Mean = "position"
    align: Align = "left"
    alpha: float | None = None
    order: Order = "given"
    kl: float | None = None
    trace: tuple[Decision, ...] = ()

    def __post_init__(self) -> None:
        _require_choice("ablation", self.ablation, get_args(Ablation))
        _require_choice("mean", self.mean, get_args(Mean))
        _require_choice("align", self.align, get_args(Align))
        _require_choice("order", self.order, get_args(Order))
        object.__setattr__(self, "heads", tuple(sorted(set(self.heads))))
        object.__setattr__(self, "mlps", tuple(sorted(set(self.mlps))))

    @property
    def fixed_length(self) -> bool:
        """True when the replacements differ by position, which pins the sequence length."""
        return self.ablation == "mean" and self.mean == "position"

    def keeps(self, component: Component) -> bool:
        """Whether the component stays."""
        return component in self.heads if isinstance(component, Head) else component.layer in self.mlps

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """Indices of the heads that stay in one layer, ascending."""
        return tuple(head.index for head in self.heads if head.layer == layer)

    def check_fits(self, *, n_layers: int, n_heads: int) -> None:
        """Raise InputError when a component is not in a model of this many layers and heads."""
        for head in self.heads:
            if not (0 <= head.layer < n_layers and 0 <= head.index < n_heads):
                raise InputError(
                    f"circuit names head {head}, but the model has layers 0..{n_layers - 1} "
                    f"and heads 0..{n_heads - 1}; mend the circuit or choose the model it came from"
                )
        for layer in self.mlps:
            if not 0 <= layer < n_layers:
                raise InputError(
                    f"circuit names MLP m{layer}, but the model has layers 0..{n_layers - 1}; "
                    "mend the circuit or choose the model it came from"
                )

    def to_json(self) -> dict[str, Any]:
        """The manifest's `circuit` object (DESIGN section 7)."""
        return {
            "heads": [[head.layer, head.index] for head in self.heads],
            "mlps": list(self.mlps),
            "ablation": self.ablation,
            "mean": self.mean,
            "align": self.align,
            "alpha": self.alpha,
            "order": self.order,
            "kl": self.kl,
            "trace": [decision_to_json(step) for step in self.trace],
        }

    @classmethod
    def from_json(cls, data: Any) -> Circuit:
        """Read what `to_json` wrote, or a hand-written object with at least `heads` and `mlps`."""
        if not isinstance(data, Mapping):
            raise InputError(f"a circuit is a JSON object with 'heads' and 'mlps', not {_kind(data)}")
        unknown = sorted(set(data) - _KEYS)
        if unknown:
            raise InputError(f"unknown field {unknown[0]!r} in the circuit; known: {', '.join(sorted(_KEYS))}")
        missing = [key for key in ("heads", "mlps") if key not in data]
        if missing:
            raise InputError(f"the circuit has no {missing[0]!r}; give heads as [[layer, head], ...] and mlps as [...]")
        return cls(
            heads=tuple(Head(*_integers(pair, "a head", 2)) for pair in _list(data["heads"], "heads")),
            mlps=_integers(data["mlps"], "mlps", None),
            ablation=data.get("ablation", "mean"),
            mean=data.get("mean", "position"),
            align=data.get("align", "left"),
            alpha=_number(data.get("alpha"), "alpha"),
            order=data.get("order", "given"),
            kl=_number(data.get("kl"), "kl"),
            trace=tuple(decision_from_json(step) for step in _list(data.get("trace", []), "trace")),
        )

    def save(self, path: str | Path) -> None:
        """Write the circuit as one JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit file, or take the circuit out of a manifest. Raises InputError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the circuit {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); give a circuit file or a manifest") from error
        if isinstance(data, Mapping) and "schema" in data and "circuit" in data:
            data = data["circuit"]
        try:
            return cls.from_json(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


_KEYS = {"heads", "mlps", "ablation", "mean", "align", "alpha", "order", "kl", "trace"}


def _kind(value: Any) -> str:
    return type(value).__name__


def _require_choice(field: str, value: Any, allowed: Iterable[str]) -> None:
    choices = tuple(allowed)
    if value not in choices:
        raise InputError(f"{field} is {value!r}; choose from {', '.join(choices)}")


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{field} must be a list, not {_kind(value)}")
    return value


def _integers(value: Any, field: str, length: int | None) -> tuple[int, ...]:
    items = _list(value, field)
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items) or (
        length is not None and len(items) != length
    ):
        wanted = "a list of" if length is None else f"a list of {length}"
        raise InputError(f"{field} must be {wanted} integers from 0, not {json.dumps(value)[:60]}")
    return tuple(items)


def _number(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{field} must be a finite number, not {value!r}")
    return float(value)
