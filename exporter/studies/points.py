"""The points of a sweep: what each one is, and how they are computed, in one process or several.

Points share what they can without a change in any digit. A process loads the model once, asks the dense model once per
seed, and takes means once per seed and ablation. And a search with another alpha takes the same decisions up to the
first one at which the two thresholds disagree: those decisions are handed on as `prior`, as those of a journal are to a
search that is resumed, and are not evaluated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.circuit import Ablation, Circuit, Decision, SearchRecord
from exporter.evidence.evaluate import AnswerLogits, evaluate_circuit, evaluate_dense
from exporter.evidence.figures import Evaluation
from exporter.job.command import write_command
from exporter.job.options import Job
from exporter.job.plan import Plan, prepare
from exporter.job.run import search_plan
from exporter.loading.load import load_model
from exporter.network.step import Sublayer
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.rules import AlphaRule


@dataclass(frozen=True)
class Point:
    """One point of a sweep, as it is stored: its job, its circuit with the record of its search, and its figures.

    settings: seed, ablation, mlps, and alpha or budget. figures: `parameters` that stay, `size` as a share of the dense
    model's, `components` kept as a share of the candidates (an MLP kept in part counts by its neurons), the selection
    set's `kl` and `selection_accuracy`, and of the test set every metric by name, `test`, with those of the dense
    model, `dense`, and of the circuit without any candidate, `empty`. command: the job that makes this point.
    """

    number: int
    settings: dict[str, Any]
    figures: dict[str, Any]
    circuit: Circuit
    record: SearchRecord
    command: str

    def to_json(self) -> dict[str, Any]:
        """One entry of a sweep's file, and of its journal."""
        circuit = self.circuit.to_json() | self.record.to_json()
        return {"point": self.number, **self.settings, **self.figures, "command": self.command, "circuit": circuit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """Read what `to_json` wrote; raises KeyError, TypeError, InputError."""
        settings = {name: data[name] for name in ("seed", "ablation", "mlps", "alpha", "budget")}
        names = ("parameters", "size", "components", "kl", "selection_accuracy", "test", "dense", "empty")
        return cls(
            number=data["point"],
            settings=settings,
            figures={name: data[name] for name in names},
            circuit=Circuit.from_json(data["circuit"]),
            record=SearchRecord.from_json(data["circuit"]),
            command=data["command"],
        )


class Bench:
    """What the points of one sweep share in one process."""

    def __init__(self, job: Job) -> None:
        self.model = load_model(job.model)
        self.dense = self.model.dense
        self._prepare = lru_cache(2)(lambda seed: prepare(replace(job, seed=seed), self.model))
        self._means = lru_cache(2)(self._compute_means)
        self._empty = lru_cache(2)(self._evaluate_empty)
        self._whole = lru_cache(2)(lambda seed: self._evaluate(seed, self._ask(seed)))
        self._ask = lru_cache(2)(lambda seed: remember_logits(self.dense.answer_logits))

    def plan(self, job: Job) -> Plan:
        """The plan of a point's job; the seed's prompts are made once."""
        return replace(self._prepare(job.seed), job=job)

    def make_point(self, number: int, job: Job, like: Point | None = None) -> Point:
        """Search, rewrite, evaluate. `like`: a finished point of another alpha, whose first decisions are shared."""
        prior = () if like is None or job.alpha is None else share_decisions(job.alpha, like.record.trace)
        if like is not None and len(prior) == len(like.record.trace):  # the whole search
            return _copy(like, number, job)
        plan = self.plan(job)
        if job.is_gradual:
            found = search_plan(plan, {})
        else:
            found = search_plan(plan, {"prior": prior}, replacements=self._means(job.seed, plan.ablation))
        assert found.surgery is not None, "a sweep computes in float32"
        sliced = slice_model(self.dense, found.surgery)
        small = fold_model(sliced)
        return Point(
            number=number,
            settings=_describe(job),
            figures={
                "parameters": sliced.count_parameters(),
                "size": sliced.count_parameters() / self.dense.count_parameters(),
                "components": _count_share(found.circuit, self._candidates(job)),
                "kl": found.record.kl,
                "selection_accuracy": evaluate_dense(small.answer_logits, plan.data.selection).accuracy,
                "test": self._evaluate(job.seed, small.answer_logits).metrics,
                "dense": self._whole(job.seed).metrics,
                "empty": self._empty(job.seed, plan.ablation, job.mlps).metrics,
            },
            circuit=found.circuit,
            record=found.record,
            command=write_command(replace(job, out=Path("model.onnx"))),
        )

    def _candidates(self, job: Job) -> list[Sublayer]:
        """The sublayers whose units may be removed."""
        return [s for s in self.dense.sublayers() if job.mlps or s.sites[0].kind == "heads"]

    def _compute_means(self, seed: int, ablation: Ablation) -> Replacements:
        return compute_replacements(self.dense, self._prepare(seed).data.patching, ablation=ablation)

    def _evaluate_empty(self, seed: int, ablation: Ablation, mlps: bool) -> Evaluation:
        """The circuit without any candidate."""
        layers = () if mlps else tuple({s.layer for s in self.dense.sublayers() if s.sites[0].kind != "heads"})
        surgery = Surgery(Circuit(heads=(), mlps=layers, ablation=ablation), self._means(seed, ablation))
        return self._evaluate(seed, fold_model(slice_model(self.dense, surgery)).answer_logits)

    def _evaluate(self, seed: int, answer_logits: AnswerLogits) -> Evaluation:
        """A model against the dense one on the test set; the dense one is asked once."""
        return evaluate_circuit(self._ask(seed), answer_logits, self._prepare(seed).data.test)


def remember_logits(answer_logits: AnswerLogits) -> AnswerLogits:
    """A function that gives the same logits, and computes each only once."""
    known: dict[bytes, Tensor] = {}

    def answer(ids: Tensor, mask: Tensor | None, n_steps: int) -> Tensor:
        key = ids.numpy().tobytes() + (b"" if mask is None else mask.numpy().tobytes())
        if key not in known:
            known[key] = answer_logits(ids, mask, n_steps)
        return known[key]

    return answer


def _describe(job: Job) -> dict[str, Any]:
    return {
        "seed": job.seed,
        "ablation": (job.ablation or Ablation()).kind,
        "mlps": "searched" if job.mlps else "kept",
        "alpha": job.alpha,
        "budget": None if job.budget is None else job.budget.to_json(),
    }


def _count_share(circuit: Circuit, sublayers: Sequence[Sublayer]) -> float:
    """The share of heads and MLPs that stay; an MLP that stays in part counts by its neurons."""
    whole = sum(len(sublayer.sites[0].units) for sublayer in sublayers)
    sites = [(len(sublayer.sites[0].units), sublayer.site_for(circuit)) for sublayer in sublayers]
    return sum(weight * len(site.kept(circuit)) / len(site.units) for weight, site in sites) / whole


def share_decisions(alpha: float, trace: Sequence[Decision]) -> tuple[Decision, ...]:
    """The first decisions of a finished search, as far as the same search with another alpha takes them, too.

    A decision depends on those before it and on alpha, so two searches go the same way up to the first decision that
    their thresholds do not share.
    """
    rule = AlphaRule(alpha)
    return tuple(takewhile(lambda d: rule.allows(d.kl_before, d.kl_without) == d.removed, trace))


def is_like(job: Job, other: Job) -> bool:
    """Whether two jobs are the same but for their thresholds, so that one takes the first decisions of the other."""
    return job.alpha is not None and other.alpha is not None and replace(job, alpha=other.alpha) == other


def find_like(job: Job, finished: Sequence[Point]) -> Point | None:
    """The finished point that shares most decisions with a job; None without one of the same search but alpha."""
    names, settings, alpha = ("seed", "ablation", "mlps"), _describe(job), job.alpha
    if alpha is None:
        return None
    same = [p for p in finished if all(p.settings[name] == settings[name] for name in names)]
    return max(same, key=lambda p: len(share_decisions(alpha, p.record.trace)), default=None)


def _copy(point: Point, number: int, job: Job) -> Point:
    """The point of a search that takes all of another one's decisions: its circuit and its figures, under its alpha."""
    command, record = write_command(replace(job, out=Path("model.onnx"))), replace(point.record, alpha=job.alpha)
    return replace(point, number=number, settings=_describe(job), record=record, command=command)
