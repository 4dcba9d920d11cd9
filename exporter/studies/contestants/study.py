"""What all contestants are given: the model, the task's sets, and what the dense model says of them, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from exporter.evidence.fitness import require_tokenizer
from exporter.job.plan import Plan
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.search.gradual import SETUP
from exporter.search.healing import BATCH, Healer
from exporter.search.latency import Costs, count_in_parameters
from exporter.search.lessons import Lessons, ask_dense, keep_aside
from exporter.search.memory import plan_learning
from exporter.search.state import State, start_state
from exporter.studies.contestants.systems import NetworkSystem, System
from exporter.tasks import TaskData, Tokenizer
from exporter.tasks.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Candidate:
    """A system in a comparison. budget: what was spent on it, in words."""

    name: str
    system: System
    budget: str


@dataclass(frozen=True, eq=False)
class Study:
    """The input of every contestant. sizes: which shares of the dense model's parameters they are to be tried at.

    Test and unseen sets are in `data`, for whoever judges: no contestant may read them.
    """

    plan: Plan
    sizes: tuple[float, ...]

    @property
    def data(self) -> TaskData:
        """The task's sets."""
        return self.plan.data

    @property
    def dense(self) -> CircuitModel:
        """The dense model."""
        return self.plan.model.dense

    @property
    def tokenizer(self) -> Tokenizer:
        """The dense model's."""
        tokenizer: Tokenizer = require_tokenizer(self.plan.model)
        return tokenizer

    @property
    def labelled(self) -> list[Dataset]:
        """The patching and the selection prompts whose right answer is known: what classifiers learn from."""
        patching, selection = self.data.patching, self.data.selection
        return [part.take_labelled() for part in (patching, selection) if part.is_labelled.any()]

    @cached_property
    def replacements(self) -> Replacements:
        """Means of heads, MLPs and neurons over the patching prompts."""
        layers = {sublayer.layer for sublayer in self.dense.sublayers()}
        return compute_replacements(self.dense, self.data.patching, ablation=self.plan.ablation, neurons=layers)

    @cached_property
    def start(self) -> State:
        """The dense model as the first network to cut."""
        return start_state(self.dense, self.plan.ablation, self.data.patching.length)

    @cached_property
    def costs(self) -> Costs:
        """What units cost, in parameters, as in our own search."""
        return count_in_parameters(self.dense, setup=SETUP)

    @cached_property
    def lessons(self) -> Lessons:
        """The patching prompts with the dense model's answers."""
        return ask_dense(self.dense, self.data.patching)

    @cached_property
    def healer(self) -> Healer:
        """Learns from the patching prompts after the dense model, as our own search does."""
        lessons, aside = keep_aside(self.lessons, self.make_generator(0))
        prompts = self.data.patching
        plan = plan_learning(self.dense, BATCH, prompts.length, self.plan.job.memory_limit, n_steps=prompts.n_steps)
        return Healer(lessons, aside, plan=plan)

    def make_generator(self, seed: int) -> torch.Generator:
        """A generator for what is random: the same in every run of the job's seed."""
        return torch.Generator().manual_seed(1000 * self.plan.job.seed + seed)

    def wrap(self, model: CircuitModel) -> NetworkSystem:
        """A network as a contestant's system, exported as all of them are."""
        return NetworkSystem(model, self.plan.options)


Contestant = Callable[[Study], Iterator[Candidate]]
"""Makes systems, one after the other; each is judged and timed before the next is made. Raises InputError for what it
cannot do: what it has made until then counts."""
