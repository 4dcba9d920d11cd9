"""The entry to every search: `find_circuit`, and the strategies by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exporter.checks import require_choice, require_type
from exporter.circuit import Ablation, Align, By, Circuit, Decision, Kind, SearchRecord
from exporter.network.dense import HasDense, get_dense
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.rewrite.surgery import Surgery
from exporter.search.gradual import search_gradually
from exporter.search.greedy import search_greedily
from exporter.search.problem import OnDecision, Problem, Strategy
from exporter.search.ranks import SOLO, Ranks
from exporter.search.rules import AlphaRule, Budget
from exporter.tasks.dataset import Dataset

SEARCHES: dict[str, Strategy] = {
    "gradual": search_gradually,
    "paper": search_greedily,
}
"""Search strategies by name; the name is the `order` of a SearchRecord."""


def find_circuit(
    model: HasDense,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    metric: str = "kl",
    ablation: Ablation | Kind = "mean",
    mean: By = "position",
    align: Align = "left",
    mlps: bool = True,
    memory_limit: int | None = None,
) -> Circuit:
    """Remove every component whose removal raises KL(dense || circuit) by less than `alpha` nats, in one greedy pass.

    The algorithm of arXiv 2412.15750, from the last layer to the first (docs/design.md, section 4). Replacements are
    means over `patching`; KL is the mean over the answers of `selection`. `ablation` is an Ablation, which then
    overrides `mean` and `align`, or a kind that they complete. `metric` is what shall stay near the dense model's, one
    of `exporter.metrics.SEARCHED`; alpha is in its unit. `memory_limit` is in bytes, beside the model.
    `search_circuit` returns the decisions, too. Raises InputError: an alpha that is not above 0; token ids outside the
    vocabulary; means by position and prompts of another length; a memory limit below what one prompt needs.
    """
    chosen = ablation if isinstance(ablation, Ablation) else Ablation(ablation, mean, align)
    circuit, _ = search_circuit(
        model, patching, selection, alpha=alpha, metric=metric, ablation=chosen, mlps=mlps, memory_limit=memory_limit
    )
    return circuit


def search_circuit(
    model: HasDense,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    metric: str = "kl",
    ablation: Ablation | str = "mean",
    mlps: bool = True,
    memory_limit: int | None = None,
    strategy: str = "paper",
    replacements: Replacements | None = None,
    prior: Sequence[Decision] = (),
    ranks: Ranks = SOLO,
    on_decision: OnDecision | None = None,
) -> tuple[Circuit, SearchRecord]:
    """`find_circuit` with all options of a `Problem`; returns the circuit and the record of the search.

    `replacements`: the tables of the ablation over `patching`, if the caller has them; `ablation` is ignored then.
    Raises InputError as `find_circuit`, and for an unknown `strategy`; LostRankError when another process is gone.
    """
    surgery, record = search_surgery(
        model,
        patching,
        selection,
        rule=AlphaRule(alpha),
        metric=metric,
        strategy=strategy,
        ablation=ablation,
        replacements=replacements,
        mlps=mlps,
        memory_limit=memory_limit,
        prior=prior,
        ranks=ranks,
        on_decision=on_decision,
    )
    return surgery.circuit, record


def search_surgery(
    model: HasDense,
    patching: Dataset,
    selection: Dataset,
    *,
    rule: AlphaRule | Budget,
    strategy: str | None = None,
    ablation: Ablation | str = "mean",
    replacements: Replacements | None = None,
    **options: Any,
) -> tuple[Surgery, SearchRecord]:
    """A circuit with its replacements and edits, and how it was found: by a strategy of `SEARCHES`.

    Without `strategy` the search is greedy for a threshold, gradual for a budget. `options` are the other fields of
    `Problem`. Raises InputError, also for a budget that no circuit keeps.
    """
    dense = get_dense(model)
    for name, dataset in (("patching", patching), ("selection", selection)):
        require_type(name, dataset, Dataset)
        dataset.require_known(len(dense.W_E))
    if strategy is None:
        strategy = "paper" if isinstance(rule, AlphaRule) else "gradual"
    require_choice("strategy", strategy, SEARCHES)
    device = options.get("ranks", SOLO).device
    dense, patching, selection = dense.on_device(device), patching.to(device), selection.to(device)
    normed: dict[int, Tensor] = {}

    def keep(rows: Tensor, x: Tensor) -> None:
        normed.update(zip(rows.tolist(), dense.final_norm(x[:, -patching.n_steps :]), strict=True))

    if replacements is None:
        learns = isinstance(rule, Budget)
        replacements = compute_replacements(
            dense,
            patching,
            ablation=Ablation.take(ablation),
            neurons={sublayer.layer for sublayer in dense.sublayers()} if learns else (),
            on_residual=keep if learns else None,
        )
    problem = Problem(
        dense=dense,
        replacements=replacements,
        selection=selection,
        rule=rule,
        patching=patching,
        normed=torch.stack([normed[row] for row in range(len(patching))]) if normed else None,
        **options,
    )
    return SEARCHES[strategy](problem)
