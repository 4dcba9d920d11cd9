"""Gradual search: smaller and smaller by heads and neurons, healed on the way, as long as a budget is kept.

At each size every unit that is left has its score (`gates`), and the units that are worth most for what they cost stay
(`allotment`). A removed unit becomes its mean, taken anew on the network as it then is; then the survivors learn
(`healing`). With `heal="none"` weights and means are the dense model's, as in the greedy search. Where a size does not
keep the budget, gentler cuts are tried from the last size that did: units that had gone are back, and are scored anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from exporter.circuit import Circuit, Head, Learning, SearchRecord, SizeStep
from exporter.errors import InputError
from exporter.metrics import Answers, measure
from exporter.metrics.statistics import weighted_mean
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.allotment import Offer, choose_units
from exporter.search.cost import count_costs
from exporter.search.gates import score_units
from exporter.search.healing import HARMLESS, Lessons, answer, ask_dense
from exporter.search.problem import Problem
from exporter.search.refit import make_healer
from exporter.search.rules import Budget
from exporter.search.state import State, copy_state, cut_state, make_surgery, pick_tables, select_tables, start_state

FIRST = 0.4  # of the dense model's parameters: what is left after the first cut
HEALED = 0.3  # from here on a size is healed
RATIO = 0.65  # of each size to the one before, and where it is small already, or not healed
RATIO_SMALL, SMALL = 0.75, 0.12
RATIO_UNHEALED = 0.8
LEAST = 0.005  # the smallest size that is tried
SETUP = 0.001  # what a sublayer costs beside its units, as a share of the dense model's parameters
SCORED_FIRST, SCORED = 128, 512  # prompts that units are scored on, while the network is whole and later
ASIDE = 0.1  # of the prompts: they say when to stop healing
LEAST_ASIDE, MOST_ASIDE = 8, 128
STEPS_AT_WHOLE = 8  # of healing at the size of the dense model; at a share of it as many more
LEAST_STEPS, MOST_STEPS = 40, 240
MOST_OF_CONSTANT = 0.75  # of the KL of a model that always answers alike: a circuit has to be nearer
WORTH_MORE = 0.05  # of accuracy: a network that lacks no more is healed for longer
NEAREST = 0.97  # of a size: no cut is tried that leaves more of it
GENTLER = 2  # how often a gentler cut is tried where one did not keep the budget
_CHUNK = 32


@torch.inference_mode(False)
def search_gradually(problem: Problem) -> tuple[Surgery, SearchRecord]:
    """The smallest circuit on the way down that keeps the budget; what was learnt are the surgery's edits.

    Raises InputError where no size keeps it, with the nearest.
    """
    search = _Search(problem)
    for step in search.run():
        if problem.on_size is not None:
            problem.on_size(step, step.parameters / search.size)
    return search.finish()


@dataclass(frozen=True)
class Judgement:
    """How a network does on the selection set: accuracy as a share, KL(dense || circuit) in nats."""

    accuracy: float
    kl: float


@torch.no_grad()
def judge(lessons: Lessons, respond: Callable[[Lessons], Tensor]) -> Judgement:
    """Accuracy and KL of logits at the answer positions, (prompt, step, vocab), on prompts that dense has answered."""
    parts = lessons.split(_CHUNK)
    values = measure(Answers(part.prompts, respond(part), part.logits) for part in parts)
    kl = weighted_mean(values["kl"], lessons.prompts.counted.sum(dim=1))
    return Judgement(float(values["accuracy"].mean()), kl)


def judge_network(model: CircuitModel, lessons: Lessons) -> Judgement:
    """The same of a network."""
    return judge(lessons, lambda part: answer(model, part.prompts))


@dataclass
class _Walk:
    """From which size the next cut is made, how small it is to be, and what was tried: shares of the dense model."""

    target: float
    ratio: float
    base: float = 1.0
    best: float | None = None  # the smallest size that kept the budget
    failures: int = 0

    def go_on(self, size: float, *, kept: bool, judged: bool) -> None:
        """Take in a size that was tried; from one that is not judged yet, the walk goes on whatever it is like."""
        if kept:
            self.best = size
        if kept or not judged:
            self.base = size
            if size < SMALL:
                self.ratio = max(self.ratio, RATIO_SMALL)
            self.target = size * self.ratio
            return
        self.failures += 1
        self.ratio = self.ratio**0.5
        self.base = 1.0 if self.best is None else self.best
        self.target = (size * self.base) ** 0.5


class _Search:
    """A problem, its prompts with the dense model's answers, and the networks at hand."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.rule, Budget)
        assert problem.patching is not None
        self.problem, self.dense, self.budget = problem, problem.dense, problem.rule
        self.heals = problem.heal != "none"
        self.size = self.dense.count_parameters()
        self.path: list[SizeStep] = []
        self.selection = ask_dense(self.dense, problem.selection)
        if problem.normed is None:
            lessons = ask_dense(self.dense, problem.patching)
        else:
            lessons = Lessons(problem.patching, problem.normed.clone(), self.dense.W_U)
        rows = torch.randperm(len(lessons), generator=self._make_generator())
        n_aside = min(MOST_ASIDE, int(len(lessons) * ASIDE))
        aside = lessons.take(rows[:n_aside]) if n_aside >= LEAST_ASIDE else None
        self.lessons = lessons if aside is None else lessons.take(rows[n_aside:])
        self.healer = make_healer(problem, self.lessons, aside)
        dense = judge(self.selection, lambda part: part.logits)
        self.bounds = self.budget.resolve(accuracy=dense.accuracy, parameters=self.size)
        self.most_kl = math.inf if problem.teacher == "labels" else MOST_OF_CONSTANT * self._judge_constant().kl
        self.start = start_state(self.dense, problem.replacements.ablation, problem.patching.length)
        self.base, self.best = self.start, None
        self.walk = _Walk(target=FIRST, ratio=RATIO if self.heals else RATIO_UNHEALED)

    base: State
    best: State | None

    def run(self) -> Iterator[SizeStep]:
        """Try sizes until the next one is known to be too small."""
        walk = self.walk
        while walk.failures <= GENTLER and walk.target >= LEAST:
            heals = self.heals and (walk.target <= HEALED or walk.failures > 0)
            judged = heals or not self.heals  # a large network that is not healed yet says nothing
            trial = self._cut(self.base, max(walk.target, self._find_goal()))
            if trial.model.count_parameters() in {step.parameters for step in self.path}:
                walk.target = (walk.target * walk.base) ** 0.5  # the same cut as one that was tried
                if walk.target > NEAREST * walk.base:
                    break
                continue
            step = self._heal_and_judge(trial, heals=heals)
            self.path.append(step)
            walk.go_on(self._price(trial), kept=step.kept, judged=judged)
            if step.kept:
                self.best = trial
            self.base = trial if step.kept or not judged else self.best or self.start
            yield step
            if not self.budget.bounds_quality and step.kept and self._keeps_cost(trial):
                break

    def finish(self) -> tuple[Surgery, SearchRecord]:
        """The smallest network that kept the budget, healed once more; raises InputError where there is none."""
        best, problem = self.best, self.problem
        if best is None or not self._keeps_cost(best):
            raise InputError(self._describe_nearest())
        judged, n_steps = judge_network(best.model, self.selection), sum(step.steps for step in self.path)
        if self.heals:
            more = copy_state(best)
            n_steps += self.healer.heal(more.model, steps=MOST_STEPS, seed=self._make_seed())
            again = judge_network(more.model, self.selection)
            if self._keeps_quality(again) and again.accuracy >= judged.accuracy:
                best, judged = more, again
            surgery = make_surgery(self.dense, best, problem.replacements)
        else:
            surgery = Surgery(best.circuit, select_tables(problem.replacements, best.circuit))
        learning = Learning(problem.heal, problem.teacher, len(self.lessons), n_steps) if self.heals else None
        budget, path = self.budget.to_json(), tuple(self.path)
        return surgery, SearchRecord(order="gradual", kl=judged.kl, budget=budget, path=path, learning=learning)

    def _cut(self, base: State, target: float) -> State:
        """A network of at most the target's share of the dense model's parameters, not healed yet."""
        problem, model, ranks = self.problem, base.model, self.problem.ranks
        is_first = base is self.start
        lessons = self.lessons.take(torch.arange(min(len(self.lessons), SCORED_FIRST if is_first else SCORED)))
        means = pick_tables(problem.replacements, model)
        if self.heals and not is_first:
            layers = {sublayer.layer for sublayer in model.sublayers()}
            means = compute_replacements(model, lessons.prompts, ablation=means.ablation, neurons=layers)
        generator = self._make_generator()
        drawn = [(part.prompts, part.draw_tokens(generator)) for part in lessons.split(_CHUNK)]
        own = drawn[ranks.rank :: ranks.size]
        worth = score_units(model, [prompts for prompts, _ in own], [tokens for _, tokens in own], means)
        ranks.add_up(list(worth.values()))
        circuit = self._choose(base, worth, target)
        if self.heals:
            return cut_state(base, circuit, means)
        tables = select_tables(problem.replacements, circuit)
        return State(circuit, slice_model(self.dense, Surgery(circuit, tables)))

    def _choose(self, base: State, worth: Mapping[str, Tensor], target: float) -> Circuit:
        """The circuit of the units that are worth most for what they cost."""
        offers: dict[str, Offer] = {}
        fixed = sum(p.numel() for p in self.dense.final_norm.parameters())
        heads: list[Head] = []
        mlps: list[int] = []
        neurons: dict[int, tuple[int, ...]] = {}
        sites = {sublayer.sites[-1].name: sublayer.sites[-1] for sublayer in base.model.sublayers()}
        for sublayer in base.model.sublayers():
            site, (per_unit, beside) = sublayer.sites[-1], count_costs(sublayer)
            if self.problem.is_candidate(site):
                offers[site.name] = Offer(worth[site.name], per_unit, beside + SETUP * self.size)
            else:
                fixed += round(per_unit * len(site.units) + beside)
        chosen = choose_units(offers, max(0.0, target * self.size - fixed))
        for name, site in sites.items():
            stays = chosen[name].tolist() if name in chosen else [True] * len(site.units)
            units = tuple(unit for unit, is_kept in zip(site.units, stays, strict=True) if is_kept)
            if site.kind == "heads":
                heads += [Head(site.layer, unit) for unit in units]
            elif all(stays) and base.circuit.neurons_of(site.layer) is None:
                mlps.append(site.layer)
            elif units:
                neurons[site.layer] = units
        return Circuit(tuple(heads), tuple(mlps), self.problem.replacements.ablation, tuple(neurons.items()))

    def _heal_and_judge(self, trial: State, *, heals: bool) -> SizeStep:
        """Heal a network in place, twice where once is not enough, and say how it does."""
        cut = after = judge_network(trial.model, self.selection)
        parameters, n_steps = trial.model.count_parameters(), 0
        steps = int(min(MOST_STEPS, max(LEAST_STEPS, STEPS_AT_WHOLE * self.size / parameters)))
        heals = heals and not (self._keeps_quality(cut) and cut.kl < HARMLESS)
        for attempt in range(2 if heals else 0):
            n_steps += self.healer.heal(trial.model, steps=steps, seed=self._make_seed() + attempt)
            after = judge_network(trial.model, self.selection)
            lacks = self.bounds.min_accuracy - after.accuracy
            if self._keeps_quality(after) or lacks > WORTH_MORE or not n_steps:  # a refit is the same again
                break
        return SizeStep(
            parameters=parameters,
            heads=len(trial.circuit.heads),
            neurons=sum(len(s.sites[-1].units) for s in trial.model.sublayers() if s.sites[-1].kind == "neurons"),
            kl_cut=cut.kl,
            accuracy_cut=cut.accuracy,
            kl=after.kl,
            accuracy=after.accuracy,
            steps=n_steps,
            kept=self._keeps_quality(after),
        )

    def _price(self, state: State) -> float:
        """What the units and sublayers of a network cost, as a share of the dense model's parameters (see `SETUP`)."""
        n_sublayers = sum(1 for _ in state.model.sublayers())
        return state.model.count_parameters() / self.size + SETUP * n_sublayers

    def _judge_constant(self) -> Judgement:
        """How a model does that gives every prompt what the dense model says on average."""
        parts = self.lessons.split(_CHUNK)
        sums = [(p.log_p.double().exp() * p.prompts.counted[..., None]).sum(0) for p in parts]  # (step, vocab) each
        log_q = torch.stack(sums).sum(0).clamp(min=1e-300).log()
        return judge(self.selection, lambda part: log_q.expand(len(part), -1, -1))

    def _keeps_quality(self, judged: Judgement) -> bool:
        """Whether a network keeps the budget, and is nearer to the dense model than one that always answers alike."""
        near = judged.kl <= self.most_kl or not self.budget.bounds_quality
        return near and self.bounds.keeps_quality(judged.accuracy, judged.kl)

    def _find_goal(self) -> float:
        """The share of the dense model's parameters at which the walk ends where quality is not bounded."""
        return 0.0 if self.budget.bounds_quality else self.bounds.max_params / self.size

    def _keeps_cost(self, state: State) -> bool:
        problem = self.problem
        latency = 0.0
        if self.budget.max_latency_ms is not None and problem.time is not None:
            latency = cast("float", problem.ranks.share(problem.time(state.model)))  # all ranks decide alike
        return self.bounds.keeps_cost(state.model.count_parameters(), latency)

    def _describe_nearest(self) -> str:
        """What to say where nothing keeps the budget."""
        wanted = ", ".join(f"{name} {value}" for name, value in self.budget.to_json().items())
        tried = [step for step in self.path if step.kept] or self.path
        nearest = min(tried, key=lambda s: s.parameters) if self.best else max(tried, key=lambda s: s.accuracy)
        return (
            f"no smaller circuit was found that keeps {wanted}; the nearest has {nearest.parameters:,} parameters "
            f"({nearest.parameters / self.size:.1%}), accuracy {nearest.accuracy:.1%} and KL {nearest.kl:.3g} on the "
            "selection set: allow more, or give more patching prompts"
        )

    def _make_seed(self) -> int:
        """A seed for what is random at the size that comes next: the same in a search that was cut short."""
        return 1000 * self.problem.seed + 10 * len(self.path)

    def _make_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._make_seed() + 9)
