"""The paper's greedy search (arXiv 2412.15750), top-down, computing only what a candidate changes.

From the last layer to the first, and in a layer heads before the MLP, a component is removed for good where the rule
allows it. When the search comes to a layer, everything below it is still dense, so its input residual is computed once.
One pass of the layer gives, for each of its heads, the change of the residual when that head is removed. Above it only
surviving sublayers run, and from the topmost surviving attention on they run for the answer positions alone. Tokens
that all prompts start with (the opening) are computed once, as a batch of one.

Most heads are removed. Where no attention survives above, a candidate is cheap, and several heads of a layer are
evaluated as one speculative batch: candidate k assumes that candidates 0..k-1 were removed. The first one that is kept
invalidates the rest, which are evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from exporter.circuit import Circuit, Component, Decision, Head, SearchRecord
from exporter.errors import InputError
from exporter.network.sites import Site
from exporter.network.step import Step, find_last_attending
from exporter.rewrite.slicing import slice_step
from exporter.rewrite.surgery import Surgery
from exporter.search.cost import group_by_layer
from exporter.search.memory import plan_memory
from exporter.search.objective import MetricObjective, make_objective
from exporter.search.problem import Problem
from exporter.search.residuals import DenseResiduals, Residual
from exporter.search.rules import AlphaRule
from exporter.tasks.dataset import Dataset

_ROWS = 400  # from here on a matrix product gains little from more rows: candidates are batched up to it


@torch.inference_mode()
def search_greedily(problem: Problem) -> tuple[Surgery, SearchRecord]:
    """Try every component once, in the paper's order: from the last layer to the first, heads before the MLP.

    Raises InputError: `problem.prior` is of another search; too few prompts for the ranks; too little memory.
    """
    search = _Search(problem)
    sites = [sublayer.sites[0] for sublayer in problem.dense.sublayers()]
    total = sum(len(site.units) for site in sites if problem.is_candidate(site))
    trace: list[Decision] = []
    for decision in search.run():
        trace.append(decision)
        if problem.on_decision is not None:
            problem.on_decision(decision, len(trace), total)
    removed = {decision.component for decision in trace if decision.removed}
    circuit = keep_others(sites, removed, problem)
    record = SearchRecord(
        alpha=search.rule.alpha, order="paper", kl=search.find_kl(), trace=tuple(trace), metric=problem.metric
    )
    return Surgery(circuit, problem.replacements), record


def keep_others(sites: list[Site], removed: set[Component], problem: Problem) -> Circuit:
    """The circuit of all units of the sites, without the removed components."""
    kept = [(site, unit) for site in sites for unit in site.units if site.component(unit) not in removed]
    return Circuit(
        heads=tuple(Head(site.layer, unit) for site, unit in kept if site.kind == "heads"),
        mlps=tuple({site.layer for site, _ in kept if site.kind == "mlp"}),  # once where blocks are parallel
        ablation=problem.replacements.ablation,
    )


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A component, and a function that computes the change of the residual when it is removed."""

    component: Component
    compute_change: Callable[[], Residual]


class _Search:
    """State of the search: the dense model, the pruned steps above the current layer, and their loss."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.rule, AlphaRule)
        dense, selection, ranks = problem.dense, problem.selection, problem.ranks
        self.rule = problem.rule
        self.problem = problem
        self.dense = dense.replace(align=problem.replacements.ablation.align)
        self.loss = 0.0  # of the problem's metric: of KL in nats
        self.above: list[Step] = []  # the pruned steps above the current layer
        self.layers = group_by_layer(dense.steps)
        self.n_last = selection.n_steps
        self.n_share = -(-len(selection) // ranks.size) * self.n_last  # rounded up: all ranks need equal batch sizes
        self.prior = iter(problem.prior)
        share = ranks.take_share(selection)
        plan = plan_memory(dense, len(share), share.length, problem.memory_limit, n_steps=self.n_last)
        first = self._embed(share, plan.chunk, selection.count_shared_positions())
        self.residuals = DenseResiduals(self.layers, first, plan.keep_every)
        last = self.residuals.last
        self.objective = make_objective(problem.metric, dense, selection, share, last, chunk=plan.chunk, ranks=ranks)
        self.state = last, list[Step]()  # where the search is: a residual, and the steps that it still has to pass

    def _embed(self, share: Dataset, chunk: int, n_opening: int) -> Residual:
        """The residual before the first layer, the shared opening split off."""
        positions, chunks, opening = [], [], None
        for part in share.split(chunk):
            ids = part.input_ids.to(self.problem.ranks.device)
            mask = None if part.mask is None else part.mask.to(self.problem.ranks.device)
            at = self.dense.place(ids, mask, length=part.length)
            x = self.dense.embed(ids, at)
            positions.append(at.split_opening(n_opening))
            chunks.append(x[:, n_opening:])
            opening = x[:1, :n_opening] if n_opening else None
        return Residual(positions, opening, chunks)

    def run(self) -> Iterator[Decision]:
        """Decide on every component: layers from the last, in a layer its steps in order, heads before MLPs."""
        for index in reversed(range(len(self.layers))):
            layer = [step.load() for step in self.layers[index]]
            x, pruned = self.residuals.take(index), []
            for later, step in enumerate(layer, start=1):
                above = [*layer[later:], *self.above]
                x, candidates = self._run_dense(step, x, above)
                removed: set[Component] = set()
                for decision, after in self._decide(candidates, x, above):
                    x = after
                    removed |= {decision.component} if decision.removed else set()
                    yield decision
                sites = [sublayer.sites[0] for sublayer in step.sublayers]
                pruned.append(slice_step(step, keep_others(sites, removed, self.problem), self.problem.replacements))
            self.state = x, self.above
            self.above = [*pruned, *self.above]

    def find_kl(self) -> float:
        """KL(dense || circuit) in nats at the end of the search, whatever it minimised."""
        if isinstance(self.objective, MetricObjective):
            return self.objective.find_kl(*self.state)
        return self.loss

    def _decide(
        self, candidates: list[_Candidate], x: Residual, above: list[Step]
    ) -> Iterator[tuple[Decision, Residual]]:
        """Each decision of one step, and the residual after it.

        Batch sizes do not depend on how many prior decisions there are: the rounding of a matrix product depends on
        its number of rows, so a resumed search must batch as the first one did.
        """
        at_once = max(1, _ROWS // self.n_share) if find_last_attending(above) < 0 else 1
        while candidates:
            batch = candidates[:at_once]
            without = list(accumulate((c.compute_change() for c in batch), Residual.plus, initial=x))[1:]
            losses: list[float] = []
            for place, candidate in enumerate(batch):
                decision = next(self.prior, None)
                if decision is None:
                    losses = losses or self.objective.price(without, above)
                    allowed = self.rule.allows(self.loss, losses[place])
                    decision = Decision(candidate.component, self.loss, losses[place], removed=allowed)
                if decision.component != candidate.component:
                    raise InputError(
                        f"the decisions of an earlier search go on with {decision.component} where this one "
                        f"is at {candidate.component}; start over without them (without --resume)"
                    )
                candidates = candidates[1:]
                if decision.removed:
                    x, self.loss = without[place], decision.kl_without
                yield decision, x
                if not decision.removed:
                    break

    def _run_dense(self, step: Step, x: Residual, above: list[Step]) -> tuple[Residual, list[_Candidate]]:
        """The residual after a dense step, and its candidates; at answer positions alone if no step above attends."""
        x = x.to(step.device)
        n_last = self.n_last if find_last_attending(above) < 0 else None
        here = x if n_last is None else x.take_last(n_last)
        after = here
        candidates: list[_Candidate] = []
        for sublayer in step.sublayers:
            site = sublayer.sites[0]
            chunks = [
                site.read(part, at, n_last=n_last, opening=x.opening) for part, at in zip(x.chunks, x.at, strict=True)
            ]
            shared = None if here.opening is None else site.read(here.opening, here.at_opening)
            activations = Residual(here.at, shared, chunks)  # (prompt, pos, ...) each
            table = self.problem.replacements.tables[site.name].to(chunks[0])
            if self.problem.is_candidate(site):
                for unit in site.units:
                    change = partial(_replace_unit, site, unit, activations, table)
                    candidates.append(_Candidate(site.component(unit), change))
            after = after.plus(activations.map(lambda part, _at, site=site: site.project(part)))  # type: ignore[misc]  # typeshed
        return after, candidates


def _replace_unit(site: Site, unit: int, activations: Residual, table: torch.Tensor) -> Residual:
    """What replacing one unit's activation by its table adds to the residual."""
    return activations.map(lambda part, at: site.change(unit, part, table, at))
