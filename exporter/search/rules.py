"""What a search may do, and when it is done: the paper's threshold, or a budget that the result has to keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exporter.checks import require_number, require_type, take_integer
from exporter.errors import InputError

_ROUNDING = 1e-9  # shares of n prompts are not exact


@dataclass(frozen=True)
class AlphaRule:
    """A component is removed when KL grows by less than `alpha` nats (Conmy et al., arXiv 2304.14997).

    Of a search by another metric, `alpha` and both losses are in that metric's unit.

    Raises InputError: alpha is not above 0, or not finite.
    """

    alpha: float

    def __post_init__(self) -> None:
        require_type("alpha", self.alpha, int, float)
        if not 0 < self.alpha < float("inf"):
            raise InputError(f"alpha is {self.alpha}; give a threshold above 0, in nats")

    def allows(self, before: float, without: float) -> bool:
        """Whether a component may be removed; both are losses of the circuit, KL(dense || circuit) in nats."""
        return without - before < self.alpha


@dataclass(frozen=True)
class Budget:
    """What a circuit has to keep on the selection set; the result is the smallest that keeps all that is given.

    min_accuracy: `99%` of the dense model's, `0.95` whatever the dense model has, or `-1pt`, a point below the dense
    model. max_kl: nats. max_params: `3%` of the dense model's parameters, or a number of them. max_latency_ms: of the
    exported file, with `batch` prompts in a call on `threads` threads (None: one for each core), as measured on this
    machine. Where neither accuracy nor KL is bounded, the largest circuit is taken that is small enough. Raises
    InputError for what is no bound.
    """

    min_accuracy: str | None = None
    max_kl: float | None = None
    max_params: str | None = None
    max_latency_ms: float | None = None
    batch: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.min_accuracy is not None:
            read_accuracy(self.min_accuracy, 1.0)
        if self.max_params is not None:
            read_parameters(self.max_params, 1)
        for name in ("max_kl", "max_latency_ms"):
            if (value := getattr(self, name)) is not None:
                require_number(name, value)
                if value <= 0:
                    raise InputError(f"{name} is {value}; give a number above 0")
        take_integer("batch", self.batch, least=1)
        if self.threads is not None:
            take_integer("threads", self.threads, least=1)

    @property
    def bounds_quality(self) -> bool:
        """Whether there is a bound on accuracy or KL."""
        return self.min_accuracy is not None or self.max_kl is not None

    @property
    def bounds_cost(self) -> bool:
        """Whether there is a bound on parameters or latency."""
        return self.max_params is not None or self.max_latency_ms is not None

    def to_json(self) -> dict[str, Any]:
        """The bounds that are given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return given if self.max_latency_ms is not None else {k: v for k, v in given.items() if k != "batch"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """Read what `to_json` wrote; raises InputError."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"{dict(data)!r:.100} is no budget ({error})") from error

    def resolve(self, *, accuracy: float, parameters: int) -> Bounds:
        """The bounds in numbers, for a dense model of this accuracy on the selection set and so many parameters."""
        return Bounds(
            min_accuracy=0.0 if self.min_accuracy is None else read_accuracy(self.min_accuracy, accuracy),
            max_kl=float("inf") if self.max_kl is None else self.max_kl,
            max_params=parameters if self.max_params is None else read_parameters(self.max_params, parameters),
            max_latency_ms=float("inf") if self.max_latency_ms is None else self.max_latency_ms,
        )


@dataclass(frozen=True)
class Bounds:
    """A budget in numbers: a share, nats, parameters, milliseconds."""

    min_accuracy: float
    max_kl: float
    max_params: int
    max_latency_ms: float

    def keeps_quality(self, accuracy: float, kl: float) -> bool:
        """Whether a circuit answers well enough."""
        return accuracy >= self.min_accuracy - _ROUNDING and kl <= self.max_kl

    def keeps_cost(self, parameters: int, latency_ms: float) -> bool:
        """Whether a circuit is small and fast enough."""
        return parameters <= self.max_params and latency_ms <= self.max_latency_ms


def read_accuracy(text: str, dense: float) -> float:
    """A bound on accuracy as a share, given the dense model's; raises InputError."""
    require_type("min_accuracy", text, str)
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text)) and 0 < float(match[1]) <= 100:
        return dense * float(match[1]) / 100
    if (match := re.fullmatch(r"-(\d+(?:\.\d+)?)pt", text)) and float(match[1]) < 100:
        return max(0.0, dense - float(match[1]) / 100)
    if re.fullmatch(r"0?\.\d+|1(\.0+)?", text) and float(text) > 0:
        return float(text)
    raise InputError(
        f"min_accuracy is {text!r}; give 99% (of the dense model's), -1pt (a point below it), or 0.95 (of prompts)"
    )


def read_parameters(text: str, dense: int) -> int:
    """A bound on parameters as a number of them, given the dense model's; raises InputError."""
    require_type("max_params", text, str)
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text)) and 0 < float(match[1]) <= 100:
        return int(dense * float(match[1]) / 100)
    if re.fullmatch(r"[1-9]\d{0,15}", text):
        return int(text)
    raise InputError(f"max_params is {text!r}; give 3% (of the dense model's), or a number of parameters")


DEPLOY = Budget(min_accuracy="-1pt")
"""The budget where none is given: no more than a point of accuracy below the dense model."""
