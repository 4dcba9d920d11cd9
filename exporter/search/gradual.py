"""Gradual search: smaller and smaller by heads and neurons, healed on the way, as long as a budget is kept.

At each size every unit that is left has its score (`gates`), and the units that are worth most for what they cost stay
(`allotment`). A removed unit becomes its mean, taken anew on the network as it then is; then the survivors learn
(`healing`). With `heal="none"` weights and means are the dense model's, as in the greedy search. Where a size does not
keep the budget, gentler cuts are tried from the last size that did: units that had gone are back, and are scored anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import cast

import torch

from exporter.circuit import Learning, SearchRecord, SizeStep
from exporter.errors import InputError
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.allotment import choose_circuit
from exporter.search.checkpoints import Checkpoint
from exporter.search.gates import score_units
from exporter.search.healing import BATCH, HARMLESS, Voice, draw_likelihood
from exporter.search.judging import CHUNK, Judgement, judge, judge_constant, judge_network
from exporter.search.latency import Meter
from exporter.search.lessons import Lessons, ask_dense, choose_lessons, keep_aside
from exporter.search.memory import LearningPlan, plan_learning
from exporter.search.problem import Problem
from exporter.search.refit import make_healer
from exporter.search.rounds import count_steps
from exporter.search.rules import Budget
from exporter.search.state import (
    State,
    copy_state,
    cut_state,
    make_surgery,
    pack_state,
    pick_tables,
    select_tables,
    start_state,
    unpack_state,
)
from exporter.search.tutor import EPOCHS, PATIENCE, ask_tutor
from exporter.search.varied_lessons import vary_lessons
from exporter.search.walk import FIRST, GENTLER, GENTLER_UNHEALED, LEAST, NEAREST, RATIO, RATIO_UNHEALED, Walk

HEALED = 0.25  # from here on a size is healed
SETUP = 0.002  # what a sublayer costs beside its units, as a share of the dense model's parameters
SCORED_FIRST, SCORED = 128, 256  # prompts that units are scored on, while the network is whole and later
USEFUL_ROUND = 0.9  # of the KL: what a round has to come below, or else win accuracy


@torch.inference_mode(False)
def search_gradually(problem: Problem) -> tuple[Surgery, SearchRecord]:
    """The smallest circuit on the way down that keeps the budget; what was learnt are the surgery's edits.

    Raises InputError where no size keeps it, with the nearest.
    """
    search = _Search(problem)
    for step in chain(tuple(search.path), search.run()):
        if problem.on_size is not None:
            problem.on_size(step, step.parameters / search.size)
    return search.finish()


class _Search:
    """A problem, its prompts with the dense model's answers, and the networks at hand."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.rule, Budget)
        assert problem.patching is not None
        self.problem, self.dense, self.budget = problem, problem.dense, problem.rule
        self.heals = problem.heal != "none"
        self.size = self.dense.count_parameters()
        self.path: list[SizeStep] = []
        self.selection = ask_dense(self.dense, problem.selection.take(problem.selection.order_by_length())).hold()
        lessons = ask_dense(self.dense, problem.patching, normed=problem.normed)
        lessons = choose_lessons(lessons, problem.teacher)
        self.lessons, self.aside = keep_aside(lessons, self._make_generator())
        length, n_steps = problem.patching.length, problem.patching.n_steps
        ranks = problem.ranks
        fits = plan_learning(self.dense, CHUNK, length, problem.memory_limit, n_steps=n_steps) if ranks.leads else None
        self.plan = cast("LearningPlan", ranks.share(fits))
        self._learn_from(*vary_lessons(problem, self.lessons, self.aside))
        dense = judge(self.selection, lambda part: part.logits)
        self.bounds = self.budget.resolve(accuracy=dense.accuracy, parameters=self.size)
        self.meter = Meter(problem, self.budget, self.bounds, setup=SETUP)
        self.constant = judge_constant(self.selection, self.lessons, problem.teacher)
        self.start = start_state(self.dense, problem.replacements.ablation, problem.patching.length)
        self.base: State = self.start
        self.best: State | None = None
        self.tutor: State | None = None
        ratio = RATIO if self.heals else RATIO_UNHEALED
        self.walk = Walk(target=FIRST if self.heals else ratio, ratio=ratio)
        if problem.checkpoint is not None:
            self._restore(problem.checkpoint)

    def run(self) -> Iterator[SizeStep]:
        """Try sizes until the next one is known to be too small; each is yielded when it is noted."""
        while True:
            if self._should_polish(is_over := not self._goes_on()):
                step = self._polish()
            elif is_over or (trial := self._cut_anew()) is None:
                return
            else:
                step = self._try(trial)
            self.path.append(step)
            if self.problem.on_checkpoint is not None:
                self.problem.on_checkpoint(self._make_checkpoint())
            yield step

    def _cut_anew(self) -> State | None:
        """The next network to try; None where the only ones left are nearly as large as one that was tried."""
        walk = self.walk
        while True:
            trial = self._cut(self.base, max(walk.target, self.meter.goal))
            if trial.model.count_parameters() not in {step.parameters for step in self.path}:
                return trial
            walk.target = (walk.target * walk.base) ** 0.5
            if walk.target > NEAREST * walk.base:
                return None

    def _try(self, trial: State) -> SizeStep:
        """Heal a network, judge it, and go on from it or from the last good one."""
        walk = self.walk
        seeks_tutor = self.problem.teacher != "dense" and self.tutor is None
        heals = self.heals and (walk.target <= HEALED or walk.failures > 0 or seeks_tutor)
        judged = heals or not self.heals  # a large network that is not healed yet says nothing
        step = self._heal_and_judge(trial, heals=heals)
        harmless = step.kept and step.kl_cut < HARMLESS
        walk.go_on(self.meter.costs.price(trial.model), kept=step.kept, judged=judged, harmless=harmless)
        if step.kept:
            self.best = trial
            if seeks_tutor:
                self._follow(trial)
        self.base = trial if step.kept or not judged else self.best or self.start
        return step

    def _follow(self, tutor: State) -> None:
        """From here on a network that has learnt the right answers teaches."""
        self.tutor, generator = tutor, torch.Generator().manual_seed(100_000 * self.problem.seed + 998)
        self._learn_from(*ask_tutor(tutor.model, self.lessons, self.aside, generator), teacher="tutor")

    def _learn_from(self, lessons: Lessons, aside: Lessons | None, *, teacher: Voice | None = None) -> None:
        self.varied = len(lessons) - len(self.lessons)
        self.healer = make_healer(self.problem, lessons, aside, self.plan, teacher=teacher)

    def _should_polish(self, is_over: bool) -> bool:
        """Whether the best network is to be healed for longer: before cuts that are gentler, and at the end."""
        if not self.heals or self.best is None or (self.path[-1].kept and not is_over):
            return False
        parameters = self.best.model.count_parameters()
        is_polished = [step.parameters for step in self.path].count(parameters) > 1
        return not is_polished and (is_over or parameters <= HEALED * self.size)

    def _polish(self) -> SizeStep:
        """Heal the best network for longer, and take it where it answers no worse."""
        assert self.best is not None
        more = copy_state(self.best)
        before = judge_network(more.model, self.selection)
        _, steps = self._count_steps(more)
        n_steps = self.healer.heal(more.model, steps=steps, seed=self._make_seed())
        after = judge_network(more.model, self.selection)
        if self._keeps_quality(after) and after.accuracy >= before.accuracy:
            self.base = self.best = more
        else:
            after = before
        return self._describe(more, before, after, n_steps)

    def _goes_on(self) -> bool:
        """Whether another size is tried."""
        walk, least = self.walk, min(LEAST, self.bounds.max_params / self.size)
        patience = GENTLER if self.heals and self.best is not None else GENTLER_UNHEALED
        return walk.failures <= patience and walk.target >= least and not self._is_small_enough()

    def _is_small_enough(self) -> bool:
        """Whether the last size ends a walk on which quality is not bounded."""
        if self.budget.bounds_quality or self.best is None or not self.path[-1].kept:
            return False
        return self.meter.keeps(self.best)

    def _make_checkpoint(self) -> Checkpoint:
        """What an interrupted search goes on from."""
        best = None if self.best is None else pack_state(self.best)
        base = best if self.base is self.best else None if self.base is self.start else pack_state(self.base)
        tutor = best if self.tutor is self.best else None if self.tutor is None else pack_state(self.tutor)
        return Checkpoint(tuple(self.path), replace(self.walk), base, best, self.meter.table, self.meter.goal, tutor)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on from there."""
        base, best = checkpoint.base, checkpoint.best
        self.path, self.walk = list(checkpoint.path), replace(checkpoint.walk)
        self.base = self.start if base is None else unpack_state(base, self.start)
        if best is not None:
            self.best = self.base if best is base else unpack_state(best, self.start)
        if checkpoint.tutor is not None:
            self._follow(unpack_state(checkpoint.tutor, self.start))

    def finish(self) -> tuple[Surgery, SearchRecord]:
        """The smallest network that kept the budget; raises InputError where there is none."""
        best, problem = self.best, self.problem
        if best is None or not self.meter.keeps(best):
            raise InputError(self._describe_nearest())
        kl = next(step.kl for step in reversed(self.path) if step.parameters == best.model.count_parameters())
        n_steps = sum(step.steps for step in self.path)
        if self.heals:
            surgery = make_surgery(self.dense, best, problem.replacements)
        else:
            surgery = Surgery(best.circuit, select_tables(problem.replacements, best.circuit))
        learnt = (len(self.lessons), n_steps, self.lessons.prompts.n_unlabelled, self.varied)
        learning = Learning(problem.heal, problem.teacher, *learnt) if self.heals else None
        budget, path = self.budget.to_json(), tuple(self.path)
        found = SearchRecord(order="gradual", kl=kl, budget=budget, path=path, learning=learning)
        return surgery, replace(found, latency=self.meter.table)

    def _cut(self, base: State, target: float) -> State:
        """A network that costs at most the target's share of the dense model, not healed yet."""
        problem, model, ranks = self.problem, base.model, self.problem.ranks
        is_first = base is self.start
        lessons = self.lessons.take(torch.arange(min(len(self.lessons), SCORED_FIRST if is_first else SCORED))).sort()
        means = pick_tables(problem.replacements, model)
        if self.heals and not is_first:
            layers = {sublayer.layer for sublayer in model.sublayers()}
            means = compute_replacements(model, lessons.prompts, ablation=means.ablation, neurons=layers)
        generator = self._make_generator()
        parts = lessons.split(self.plan.chunk)
        asked = [(part.prompts, draw_likelihood(part, problem.teacher, generator)) for part in parts]
        prompts, likelihoods = zip(*asked, strict=True)
        own = slice(ranks.rank, None, ranks.size)
        worth = score_units(model, prompts[own], likelihoods[own], means, recompute=self.plan.recompute)
        ranks.add_up(list(worth.values()))
        circuit = choose_circuit(base, worth, target, self.meter.costs, problem.is_candidate)
        if self.heals:
            return cut_state(base, circuit, means)
        tables = select_tables(problem.replacements, circuit)
        return copy_state(State(circuit, slice_model(self.dense, Surgery(circuit, tables))))

    def _heal_and_judge(self, trial: State, *, heals: bool) -> SizeStep:
        """Heal a network in place, in rounds that are longer and longer while each is of use, and say how it does."""
        cut = after = judge_network(trial.model, self.selection)
        n_steps, (steps, most) = 0, self._count_steps(trial)
        learns = self.problem.teacher != "dense" or not self._keeps_quality(cut) or cut.kl >= HARMLESS
        while heals and learns and n_steps < most:
            before, n = after, min(steps, most - n_steps)
            done = self.healer.heal(trial.model, steps=n, seed=self._make_seed() + n_steps)
            after, n_steps = judge_network(trial.model, self.selection), n_steps + done
            is_vain = after.kl > USEFUL_ROUND * before.kl and after.accuracy <= before.accuracy
            if self._keeps_quality(after) or is_vain or not done:  # a refit is the same again
                break
            steps *= 2
        return self._describe(trial, cut, after, n_steps)

    def _count_steps(self, state: State) -> tuple[int, int]:
        """`count_steps`; where right answers are learnt, at least `EPOCHS` by a tutor, one or `PATIENCE` by others."""
        first, most = count_steps(self.size // state.model.count_parameters())
        epoch = 0 if self.problem.teacher == "dense" else len(self.lessons) // BATCH
        if self.tutor is None:
            return max(first, EPOCHS * epoch), max(most, EPOCHS * epoch)
        return max(first, epoch), max(most, PATIENCE * epoch)

    def _describe(self, state: State, cut: Judgement, after: Judgement, n_steps: int) -> SizeStep:
        return SizeStep(
            parameters=state.model.count_parameters(),
            heads=len(state.circuit.heads),
            neurons=sum(len(s.sites[-1].units) for s in state.model.sublayers() if s.sites[-1].kind == "neurons"),
            kl_cut=cut.kl,
            accuracy_cut=cut.accuracy,
            kl=after.kl,
            accuracy=after.accuracy,
            steps=n_steps,
            kept=self._keeps_quality(after),
        )

    def _keeps_quality(self, judged: Judgement) -> bool:
        """Whether a network keeps the budget, and does better than a model that always answers alike."""
        if self.budget.bounds_quality and not judged.beats(self.constant, self.problem.teacher):
            return False
        return self.bounds.keeps_quality(judged.accuracy, judged.kl)

    def _describe_nearest(self) -> str:
        """What to say where nothing keeps the budget."""
        wanted = ", ".join(f"{name} {value}" for name, value in self.budget.to_json().items())
        tried = [step for step in self.path if step.kept] or self.path
        nearest = min(tried, key=lambda s: s.parameters) if self.best else max(tried, key=lambda s: s.accuracy)
        speed = f"{self.meter.time(self.best):.3g} ms a call, " if self.best and self.meter.table else ""
        return (
            f"no smaller circuit was found that keeps {wanted}; the nearest has {nearest.parameters:,} parameters "
            f"({nearest.parameters / self.size:.1%}), {speed}accuracy {nearest.accuracy:.1%} and KL {nearest.kl:.3g} "
            "on the selection set: allow more, or give more patching prompts"
        )

    def _make_seed(self) -> int:
        """A seed for what is random at the size that comes next: the same in a search that was cut short."""
        return 100_000 * self.problem.seed + 1000 * len(self.path)

    def _make_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._make_seed() + 999)
