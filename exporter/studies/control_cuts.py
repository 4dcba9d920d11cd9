"""Controls that cut the circuit otherwise: random ones of its size, the model without it, it without one unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import torch

from exporter.circuit import MLP, Circuit
from exporter.evidence.baselines.random_circuit import draw_circuit
from exporter.evidence.controls import Completeness, Figures, Minimality, RandomCircuits, UnitWorth
from exporter.evidence.evaluate import AnswerLogits, evaluate_dense
from exporter.job.build import Found
from exporter.job.plan import Plan
from exporter.metrics import Answers, measure
from exporter.metrics.statistics import Accuracy, weighted_mean
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import CHUNK, Replacements, compute_replacements
from exporter.rewrite.surgery import Surgery, operate, plan_surgery, slice_model
from exporter.search.healing import BATCH
from exporter.search.lessons import ask_dense, choose_lessons, keep_aside
from exporter.search.memory import plan_learning
from exporter.search.problem import Problem
from exporter.search.refit import Mender, make_healer
from exporter.search.state import State, cut_state, make_surgery, pick_tables, start_state
from exporter.studies.points import remember_logits
from exporter.tasks.dataset import Dataset

DRAWS = 3  # random circuits
MOST_PROMPTS = 250  # that the circuit is tried on without each of its units


@dataclass(frozen=True, eq=False)
class Subject:
    """What controls are about: a job, and the circuit that it came to. Its test set is read for figures only."""

    plan: Plan
    found: Found

    @property
    def dense(self) -> CircuitModel:
        """The dense model."""
        return self.plan.model.dense

    @property
    def circuit(self) -> Circuit:
        """The circuit."""
        return self.found.circuit

    @cached_property
    def surgery(self) -> Surgery:
        """The circuit's, with its edits where it was healed."""
        return self.found.surgery or plan_surgery(self.dense, self.circuit, self.plan.data.patching)

    @cached_property
    def replacements(self) -> Replacements:
        """The dense model's means over the patching prompts, of heads, MLPs and neurons."""
        layers = {sublayer.layer for sublayer in self.dense.sublayers()}
        patching, ablation = self.plan.data.patching, self.circuit.ablation
        return compute_replacements(self.dense, patching, ablation=ablation, neurons=layers)

    @cached_property
    def ask_dense(self) -> AnswerLogits:
        """The dense model, which is asked once."""
        return remember_logits(self.dense.answer_logits)

    def judge(self, model: CircuitModel, prompts: Dataset | None = None) -> Figures:
        """A network on the test prompts, or on some of them."""
        return judge_network(self.ask_dense, model.answer_logits, prompts or self.plan.data.test)


@torch.inference_mode()
def judge_network(dense: AnswerLogits, network: AnswerLogits, prompts: Dataset) -> Figures:
    """Accuracy and KL(dense || network), its mean over all answer positions."""
    parts = prompts.split(CHUNK)
    asked = ((part.input_ids, part.mask, part.n_steps) for part in parts)
    answers = (Answers(part, network(*of), dense(*of)) for part, of in zip(parts, asked, strict=True))
    values = measure(answers, ("accuracy", "kl"))
    kl = weighted_mean(values["kl"], prompts.counted.sum(dim=1))
    return Figures(Accuracy.of_values(values["accuracy"]), kl)


def try_random(subject: Subject) -> RandomCircuits:
    """Random circuits of the same size, healed as the circuit was, for as many steps as its whole search took."""
    learning, seed = subject.found.record.learning, subject.plan.job.seed
    circuits = [draw_circuit(subject.dense, subject.circuit, Random(f"control {seed} {i}")) for i in range(DRAWS)]
    if learning is None:
        surgeries = [Surgery(circuit, subject.replacements) for circuit in circuits]
    else:
        surgeries = list(_heal(subject, circuits, learning.steps))
    draws = tuple(subject.judge(operate(subject.dense, surgery)) for surgery in surgeries)
    return RandomCircuits(0 if learning is None else learning.steps, draws)


@torch.inference_mode(False)
def _heal(subject: Subject, circuits: list[Circuit], steps: int) -> Iterator[Surgery]:
    """The surgery of each circuit, healed from one cut."""
    job, replacements = subject.plan.job, subject.replacements
    dense = subject.dense.on_device(job.device)
    start = start_state(dense, replacements.ablation, subject.plan.data.patching.length)
    healer = _make_healer(subject, dense)
    for circuit in circuits:
        state = cut_state(start, circuit, pick_tables(replacements, dense))
        healer.heal(state.model, steps=steps, seed=job.seed)
        yield make_surgery(dense, state, replacements)


def _make_healer(subject: Subject, dense: CircuitModel) -> Mender:
    """The job's own: the same prompts, teacher and way of healing."""
    plan, job = subject.plan, subject.plan.job
    patching, selection = (prompts.to(job.device) for prompts in (plan.data.patching, plan.data.selection))
    lessons = choose_lessons(ask_dense(dense, patching), job.teacher)
    own, aside = keep_aside(lessons, torch.Generator().manual_seed(job.seed))
    fits = plan_learning(dense, BATCH, patching.length, job.memory_limit, n_steps=patching.n_steps)
    problem = Problem(dense, subject.replacements, selection, plan.rule, heal=job.heal, teacher=job.teacher, time=_fail)
    return make_healer(problem, own, aside, fits)


def _fail(model: CircuitModel) -> float:
    raise AssertionError("nothing is timed here")


def take_complement(dense: CircuitModel, circuit: Circuit) -> Circuit:
    """Every head and hidden unit that a circuit does not keep; an MLP that it keeps none of stays whole."""
    heads, mlps, neurons = [], [], {}
    for sublayer in dense.sublayers():
        site = sublayer.site_for(circuit)
        left = [unit for unit in site.units if unit not in set(site.kept(circuit))]
        if site.kind == "heads":
            heads += [(site.layer, unit) for unit in left]
        elif len(left) == len(site.units):
            mlps.append(site.layer)
        elif left:
            neurons[site.layer] = tuple(left)
    return Circuit(tuple(heads), tuple(mlps), circuit.ablation, tuple(neurons.items()))  # type: ignore[arg-type]


def try_without(subject: Subject) -> Completeness:
    """The dense model with the circuit's components ablated, and all others in place."""
    complement = take_complement(subject.dense, subject.circuit)
    model = operate(subject.dense, Surgery(complement, subject.replacements))
    dense = evaluate_dense(subject.ask_dense, subject.plan.data.test)
    return Completeness(subject.judge(model), dense)


def try_each_unit(subject: Subject) -> Minimality:
    """The circuit without each head, and without each MLP or what is left of it, as the network is: not healed again.

    A unit that goes becomes its mean over the patching prompts, on the circuit.
    """
    prompts, circuit = subject.plan.data.test[:MOST_PROMPTS], subject.circuit
    state = State(circuit, slice_model(subject.dense, subject.surgery))
    layers = {sublayer.layer for sublayer in state.model.sublayers()}
    means = compute_replacements(state.model, subject.plan.data.patching, ablation=circuit.ablation, neurons=layers)
    units = []
    for name, smaller in drop_units(circuit):
        figures = subject.judge(cut_state(state, smaller, means).model, prompts)
        units.append(UnitWorth(name, figures.kl, figures.accuracy.accuracy))
    units.sort(key=lambda unit: unit.kl, reverse=True)
    return Minimality(len(prompts), subject.judge(state.model, prompts), tuple(units))


def drop_units(circuit: Circuit) -> Iterator[tuple[str, Circuit]]:
    """The circuit without each of its heads and MLPs, with the name of what is missing."""
    for head in circuit.heads:
        yield str(head), replace(circuit, heads=tuple(other for other in circuit.heads if other != head))
    for layer in list_mlps(circuit):
        mlps = tuple(other for other in circuit.mlps if other != layer)
        neurons = tuple((other, units) for other, units in circuit.neurons if other != layer)
        yield str(MLP(layer)), replace(circuit, mlps=mlps, neurons=neurons)


def list_mlps(circuit: Circuit) -> list[int]:
    """The layers of whose MLP something is kept."""
    return sorted({*circuit.mlps, *(layer for layer, units in circuit.neurons if units)})
