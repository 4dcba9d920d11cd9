"""The input of a search strategy: model, prompts, replacements, rule, what an earlier run has left, and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from exporter.checks import require_choice, require_type, take_integer
from exporter.circuit import Decision, SearchRecord, SizeStep
from exporter.errors import InputError
from exporter.metrics import SEARCHED
from exporter.network.model import CircuitModel
from exporter.network.sites import Site
from exporter.rewrite.replacements import Replacements
from exporter.rewrite.surgery import Surgery
from exporter.search.checkpoints import Checkpoint
from exporter.search.healing import Heal
from exporter.search.lessons import Teacher
from exporter.search.ranks import SOLO, Ranks
from exporter.search.rules import AlphaRule, Budget
from exporter.tasks.dataset import Dataset

OnDecision = Callable[[Decision, int, int], None]
"""Called with each decision, the number of decisions so far, and the number of candidates."""
OnSize = Callable[[SizeStep, float], None]
"""Called with each size of a gradual search, and its share of the dense model's parameters."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One search. KL is over the whole vocabulary, in nats, the mean over all answers of `selection`.

    `metric` is what a greedy search minimises, in whose unit alpha is: one of `SEARCHED`.

    With `mlps=False` MLPs are no candidates and stay. `memory_limit` bounds what the search holds beside the model, in
    bytes (default: half of the free memory). `prior` are the decisions of an interrupted run of the same search: they
    are applied without being evaluated again. `ranks` are the processes that share the prompts. Raises InputError: a
    wrong type; a memory limit below 1; tables by position of another length than the selection prompts.

    A gradual search has a Budget as its rule, needs `patching`, which it learns from as `heal`, `teacher` and `seed`
    say, and tables for the neurons of every layer. `normed` is the dense model's residual after the final norm at the
    answer positions of `patching`, (prompt, step, d_model), where somebody has it already. `time` gives the
    milliseconds of a network as an exported file: a latency budget needs it, and times small networks first.
    `checkpoint` is where an interrupted run of the same search was; `on_checkpoint` is called after each size, before
    `on_size`, with what that run would go on from.
    """

    dense: CircuitModel
    replacements: Replacements
    selection: Dataset
    rule: AlphaRule | Budget
    metric: str = "kl"
    mlps: bool = True
    memory_limit: int | None = None
    prior: Sequence[Decision] = ()
    ranks: Ranks = field(default=SOLO)
    on_decision: OnDecision | None = None
    patching: Dataset | None = None
    heal: Heal = "distil"
    teacher: Teacher = "dense"
    seed: int = 0
    normed: Tensor | None = None
    time: Callable[[CircuitModel], float] | None = None
    on_size: OnSize | None = None
    checkpoint: Checkpoint | None = None
    on_checkpoint: Callable[[Checkpoint], None] | None = None

    def __post_init__(self) -> None:
        require_type("mlps", self.mlps, bool)
        if self.memory_limit is not None:
            take_integer("memory_limit", self.memory_limit, least=1)
        require_choice("metric", self.metric, SEARCHED)
        if isinstance(self.rule, Budget) and self.metric != "kl":
            raise InputError("a gradual search goes by the budget, and takes no metric; leave it out, or give an alpha")
        if isinstance(self.rule, Budget) and self.rule.max_latency_ms is not None and self.time is None:
            raise InputError("max_latency_ms needs `time`, which gives the milliseconds of a network as a file")
        length = self.replacements.length
        if length is not None and length != self.selection.length:
            raise InputError(
                f"patching prompts have {length} tokens and selection prompts {self.selection.length}; "
                "means by position need one length (or use by='global')"
            )

    def is_candidate(self, site: Site) -> bool:
        """Whether the units of a site may be removed."""
        return self.mlps or site.kind == "heads"


Strategy = Callable[[Problem], tuple[Surgery, SearchRecord]]
"""How a search walks: from the dense model to a circuit with its replacements and edits, and what it did on the way."""
