"""How a circuit was found: the decisions of a search or the sizes it passed through, and what was learnt on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from exporter.checks import require_number, require_type, take_integer, take_items
from exporter.circuit.components import MLP, Component, Head, Neuron, parse_component
from exporter.circuit.latency import LatencyTable
from exporter.errors import InputError


@dataclass(frozen=True)
class Decision:
    """One decision of a search: KL(dense || circuit) in nats before it and without the candidate, and the outcome.

    Of a search by another metric, both are losses in its unit (`SearchRecord.metric`).
    Raises InputError: a wrong type.
    """

    component: Component
    kl_before: float
    kl_without: float
    removed: bool

    def __post_init__(self) -> None:
        require_type("a decision's component", self.component, Head, MLP, Neuron)
        require_type("removed", self.removed, bool)


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """A decision as one entry of a trace."""
    return {
        "component": str(decision.component),
        "kl_before": decision.kl_before,
        "kl_without": decision.kl_without,
        "removed": decision.removed,
    }


def decision_from_json(value: Any) -> Decision:
    """Read one entry of a trace. Raises InputError: a missing or wrong field."""
    try:
        return Decision(
            component=parse_component(value["component"]),
            kl_before=float(value["kl_before"]),
            kl_without=float(value["kl_without"]),
            removed=value["removed"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a trace entry needs component, kl_before, kl_without and removed, not {value!r}") from error


@dataclass(frozen=True)
class SizeStep:
    """One size that a gradual search tried, judged on the selection set just after the cut and after healing.

    parameters: what stays, as a manifest's `size` counts it. heads, neurons: how many of each. kl: KL(dense || circuit)
    in nats. accuracy: a share. steps: of healing. kept: whether the size keeps the budget.
    """

    parameters: int
    heads: int
    neurons: int
    kl_cut: float
    accuracy_cut: float
    kl: float
    accuracy: float
    steps: int
    kept: bool

    def __post_init__(self) -> None:
        for name in ("parameters", "heads", "neurons", "steps"):
            take_integer(f"a size's {name}", getattr(self, name))
        for name in ("kl_cut", "accuracy_cut", "kl", "accuracy"):
            require_number(f"a size's {name}", getattr(self, name))
        require_type("kept", self.kept, bool)

    def to_json(self) -> dict[str, Any]:
        """One entry of a path."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> SizeStep:
        """Read one entry of a path; raises InputError."""
        try:
            return cls(**{field.name: value[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise InputError(f"an entry of a path needs {names}, not {value!r:.100}") from error


@dataclass(frozen=True)
class Learning:
    """How the survivors' weights came to differ from the original's.

    heal: `distil` or `refit`. teacher: `dense`, `labels` or `both`. prompts: how many were learnt from, of which
    `unlabelled` had no right answer. steps: of training, over all sizes; 0 where weights were solved in closed form.
    varied: prompts beside them that are variations of them.
    """

    heal: str
    teacher: str
    prompts: int
    steps: int
    unlabelled: int = 0
    varied: int = 0

    def __post_init__(self) -> None:
        require_type("heal", self.heal, str)
        require_type("teacher", self.teacher, str)
        take_integer("prompts", self.prompts)
        take_integer("steps", self.steps)
        take_integer("unlabelled", self.unlabelled)
        take_integer("varied", self.varied)


@dataclass(frozen=True)
class SearchRecord:
    """What a search did and where it ended.

    alpha: the threshold of the greedy search, in nats. order: the strategy's name (`paper`: top-down, the paper's
    order; `gradual`: smaller and smaller); `given` for a circuit that nobody searched for. kl: the total KL(dense ||
    circuit) on the selection set, in nats; None for a circuit that was given. trace: one entry for each candidate, in
    the order they were tried. budget: what a gradual search had to keep. path: the sizes it tried. learning: None where
    the weights that stay are the original's. latency: what sublayers take, where the budget bounds milliseconds.
    metric: what the greedy search minimised; alpha and the trace are in its unit.
    """

    alpha: float | None = None
    order: str = "given"
    kl: float | None = None
    trace: tuple[Decision, ...] = ()
    budget: Mapping[str, Any] | None = None
    path: tuple[SizeStep, ...] = ()
    learning: Learning | None = None
    latency: LatencyTable | None = None
    metric: str = "kl"

    def __post_init__(self) -> None:
        require_type("order", self.order, str)
        require_type("metric", self.metric, str)
        if not self.order.strip():
            raise InputError(f"order is {self.order!r}; give the name of a search strategy, or 'given'")
        for name, value in (("alpha", self.alpha), ("kl", self.kl)):
            if value is not None:
                require_number(name, value)
        object.__setattr__(self, "trace", take_items("trace", self.trace))
        object.__setattr__(self, "path", take_items("path", self.path))
        for name, kind in (("trace", Decision), ("path", SizeStep)):
            for step in getattr(self, name):
                require_type(f"each of {name}", step, kind)
        require_type("budget", self.budget, Mapping, type(None))
        require_type("learning", self.learning, Learning, type(None))
        require_type("latency", self.latency, LatencyTable, type(None))

    def to_json(self) -> dict[str, Any]:
        """The fields that a manifest's `circuit` has beside the circuit itself (docs/design.md, section 7).

        Those of a gradual search only where there was one, and the metric where it was not KL.
        """
        gradual: dict[str, Any] = {
            "budget": self.budget,
            "path": [step.to_json() for step in self.path],
            "learning": None if self.learning is None else asdict(self.learning),
            "latency": None if self.latency is None else self.latency.to_json(),
        }
        return {
            "alpha": self.alpha,
            "order": self.order,
            **({} if self.metric == "kl" else {"metric": self.metric}),
            "kl": self.kl,
            "trace": [decision_to_json(step) for step in self.trace],
            **{name: value for name, value in gradual.items() if value},
        }

    @property
    def scores(self) -> dict[Component, float]:
        """What the removal of each candidate cost, the increase of the KL in nats; empty where no search tried any."""
        return {step.component: step.kl_without - step.kl_before for step in self.trace}

    @property
    def search(self) -> str:
        """How the circuit was found, in words."""
        if self.budget is not None:
            kept = ", ".join(f"{name} {value}" for name, value in self.budget.items())
            return f"{self.order} search under the budget {kept}"
        by = "" if self.metric == "kl" else f"by {self.metric}, "
        return "given by hand" if self.alpha is None else f"{self.order} order, {by}alpha {self.alpha:g}"

    @property
    def weights(self) -> str:
        """Whether the weights that stay are the dense model's, in words."""
        learnt = self.learning
        if learnt is None:
            return "the original's"
        if learnt.heal == "refit":
            return f"refitted in closed form, not the original's: to {learnt.teacher} on {learnt.prompts:,} prompts"
        without = f" ({learnt.unlabelled:,} without a right answer)" if learnt.unlabelled else ""
        varied = f" and {learnt.varied:,} variations" if learnt.varied else ""
        return (
            f"healed, not the original's: {learnt.heal} from {learnt.teacher} on {learnt.prompts:,} prompts{without}"
            f"{varied}, {learnt.steps:,} steps"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchRecord:
        """Read what `to_json` wrote; ignores other fields, missing ones take defaults. Raises InputError."""
        trace, path = _take_list(data, "trace"), _take_list(data, "path")
        learning, latency = data.get("learning"), data.get("latency")
        try:
            learnt = None if learning is None else Learning(**learning)
        except TypeError as error:
            raise InputError(f"learning needs heal, teacher, prompts and steps, not {learning!r:.100}") from error
        return cls(
            alpha=_take_number(data.get("alpha"), "alpha"),
            order=data.get("order", "given"),
            kl=_take_number(data.get("kl"), "kl"),
            trace=tuple(decision_from_json(step) for step in trace),
            budget=data.get("budget"),
            path=tuple(SizeStep.from_json(step) for step in path),
            learning=learnt,
            latency=None if latency is None else LatencyTable.from_json(latency),
            metric=data.get("metric", "kl"),
        )


RECORD_KEYS = frozenset(field.name for field in fields(SearchRecord))


def _take_list(data: Mapping[str, Any], name: str) -> list[Any]:
    found = data.get(name, [])
    if not isinstance(found, list):
        raise InputError(f"{name} must be a list, not {type(found).__name__}")
    return found


def _take_number(value: Any, field: str) -> float | None:
    if value is None:
        return None
    require_number(field, value)
    return float(value)
