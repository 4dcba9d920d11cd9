"""A sweep: the same job with many thresholds or budgets, on several seeds; each combination is one point.

The paper's protocol (arXiv 2412.15750, figures of section 4) is alphas by seeds, for both ablations, with MLPs searched
and with MLPs kept. Points are independent of each other and of the number of workers: each one is the circuit of its
own job, and whatever points share (the model, the dense answers, means, decisions) is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.checks import require_choice, require_type, take_integer, take_items
from exporter.circuit import Ablation
from exporter.errors import UsageError
from exporter.job.options import Job
from exporter.search.healing import Heal
from exporter.search.rules import Budget
from exporter.tasks import SplitSizes

PAPER_ALPHAS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.2)
"""Thresholds in nats: those that the paper's table names, and what lies around them."""
MLPS: dict[str, tuple[bool, ...]] = {"searched": (True,), "kept": (False,), "both": (True, False)}
_MOST_POINTS = 10_000


@dataclass(frozen=True)
class Sweep:
    """Alphas (or budgets) x seeds x ablations x whether MLPs are searched, of one task on one model.

    seeds: how many, from 0 on. ablations: their kinds. mlps: whether MLPs are candidates. sizes, parameters, heal: as
    in a Job, and the same defaults. Raises UsageError: both or neither of alphas and budgets, a value given twice, more
    than 10,000 points, a latency budget; UsageError or InputError as Job.
    """

    task: str
    model: str = "auto"
    alphas: tuple[float, ...] = ()
    budgets: tuple[Budget, ...] = ()
    seeds: int = 5
    ablations: tuple[str, ...] = ("mean",)
    mlps: tuple[bool, ...] = (True,)
    sizes: SplitSizes | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    heal: Heal = "distil"
    force: bool = False

    def __post_init__(self) -> None:
        take_integer("seeds", self.seeds, least=1)
        if bool(self.alphas) == bool(self.budgets):
            raise UsageError("a sweep is over alphas or over budgets; give one of them")
        for name in ("alphas", "budgets", "ablations", "mlps"):
            values = take_items(name, getattr(self, name))
            if len(set(values)) < len(values):
                raise UsageError(f"{name} has a value twice; give each once")
            object.__setattr__(self, name, values)
        for kind in self.ablations:
            require_choice("ablation", kind, ("mean", "zero"))
        for budget in self.budgets:
            require_type("budget", budget, Budget)
            if budget.max_latency_ms is not None:
                raise UsageError("a sweep takes no latency budget: points would disturb each other's times")
        if len(self.ablations) == 0 or len(self.mlps) == 0:
            raise UsageError("a sweep without an ablation, or with MLPs neither searched nor kept, has no points")
        if (n := len(self.rules) * self.seeds * len(self.ablations) * len(self.mlps)) > _MOST_POINTS:
            raise UsageError(f"the sweep has {n:,} points; at most {_MOST_POINTS:,} are taken")
        self.jobs()  # checks what they check

    @property
    def rules(self) -> Sequence[float | Budget]:
        """Alphas or budgets."""
        return self.alphas or self.budgets

    def jobs(self) -> list[Job]:
        """The job of each point, in the order of their numbers: by seed, ablation, MLPs, then threshold or budget."""
        return [
            Job(
                task=self.task,
                out=None,
                model=self.model,
                alpha=None if isinstance(rule, Budget) else rule,
                budget=rule if isinstance(rule, Budget) else None,
                heal=self.heal,
                ablation=None if kind == "mean" else Ablation("zero"),
                mlps=mlps,
                seed=seed,
                sizes=self.sizes,
                parameters=self.parameters,
                force=self.force,
            )
            for seed in range(self.seeds)
            for kind in self.ablations
            for mlps in self.mlps
            for rule in self.rules
        ]

    def to_json(self) -> dict[str, Any]:
        """The grid, as JSON-able data."""
        rules = {"alphas": list(self.alphas)} if self.alphas else {"budgets": [b.to_json() for b in self.budgets]}
        heal = {} if self.alphas else {"heal": self.heal}
        return {**rules, "seeds": self.seeds, "ablations": list(self.ablations), "mlps": list(self.mlps), **heal}


def read_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between them; raises UsageError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} is {text!r:.60}; give numbers with commas between them, 0.01,0.02") from None


def read_words(option: str, text: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Words out of some choices, with commas between them; raises UsageError."""
    words = tuple(part.strip() for part in text.split(","))
    if unknown := [word for word in words if word not in choices]:
        raise UsageError(f"{option} has {unknown[0]!r:.60}; choose from {', '.join(choices)}, with commas")
    return words


_BOUNDS = {"min-accuracy": str, "max-kl": float, "max-params": str}


def read_budgets(option: str, text: str) -> tuple[Budget, ...]:
    """Budgets of one bound each, `max-params=10%,max-params=5%`; raises UsageError, and InputError for what is none."""
    budgets = []
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            budgets.append(Budget(**{name.replace("-", "_"): _BOUNDS[name](value)}))
        except (KeyError, ValueError):
            known = ", ".join(f"{name}=..." for name in _BOUNDS)
            raise UsageError(
                f"{option} has {part.strip()!r:.60}; give bounds with commas between them: {known}"
            ) from None
    return tuple(budgets)
