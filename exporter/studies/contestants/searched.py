"""What the tool's own searches find: the paper's, over thresholds, and ours, over sizes, healed and not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exporter.errors import InputError
from exporter.rewrite.surgery import slice_model
from exporter.search.find import search_surgery
from exporter.search.healing import Heal
from exporter.search.rules import DEPLOY, AlphaRule, Budget
from exporter.studies.contestants.study import Candidate, Study

ALPHAS = (0.01, 0.02, 0.04, 0.09, 0.2)  # nats


def sweep_alphas(study: Study) -> Iterator[Candidate]:
    """The paper's preset: greedy by whole heads and MLPs, original weights."""
    for alpha in ALPHAS:
        yield _search(study, f"paper, alpha {alpha:g}", AlphaRule(alpha), "none")


def search_healed(study: Study) -> Iterator[Candidate]:
    """The default job, then the same search until each of the sizes, whatever accuracy is left there."""
    return _search_sizes(study, "ours", "distil")


def search_unhealed(study: Study) -> Iterator[Candidate]:
    """The same with the original weights."""
    return _search_sizes(study, "ours-unhealed", "none")


def _search_sizes(study: Study, name: str, heal: Heal) -> Iterator[Candidate]:
    missed = None
    try:
        yield _search(study, name, DEPLOY, heal)
    except InputError as error:  # no circuit is as accurate; what the sizes have is worth knowing all the same
        missed = error
    for size in study.sizes:
        yield _search(study, f"{name} at {100 * size:g}%", Budget(max_params=f"{100 * size:g}%"), heal)
    if missed is not None:
        raise missed


def _search(study: Study, name: str, rule: AlphaRule | Budget, heal: Heal) -> Candidate:
    job, data = study.plan.job, study.data
    learns: dict[str, Any] = {"heal": heal, "seed": job.seed} if isinstance(rule, Budget) else {}
    surgery, record = search_surgery(
        study.dense,
        data.patching,
        data.selection,
        rule=rule,
        replacements=study.replacements,
        memory_limit=job.memory_limit,
        **learns,
    )
    kept = "" if record.budget is None else ", ".join(f"{name} {value}" for name, value in record.budget.items())
    learnt = "original weights" if record.learning is None else f"healed for {record.learning.steps:,} steps in all"
    return Candidate(name, study.wrap(slice_model(study.dense, surgery)), f"{kept or record.search}; {learnt}")
