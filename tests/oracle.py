"""The paper's search done plainly: a full hooked forward of the Hugging Face model for each candidate.

The oracle that the engine in `exporter.search.greedy` is held to; nothing in the product uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from exporter.circuit import MLP, Ablation, Circuit, Component, Decision, Head, SearchRecord
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel
from exporter.metrics import METRICS, Answers
from exporter.metrics.divergence import kl_divergence
from exporter.rewrite.surgery import Surgery
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import ablated, hf_inputs, record_replacements


@torch.inference_mode()
def find_circuit_hooked(
    model: LanguageModel,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    ablation: Ablation | str = "mean",
    mlps: bool = True,
    metric: str = "kl",
    on_logits: Callable[[Tensor], None] | None = None,
) -> tuple[Circuit, SearchRecord]:
    """docs/design.md, section 4, word by word; of another metric than KL, how much worse than dense its mean is.

    `on_logits` is called with the logits of each circuit, (prompt, step, vocab).
    """
    family = FAMILIES[model.family]
    n_layers, n_heads = family.n_layers(model.hf), family.n_heads(model.hf)
    ablation = Ablation.take(ablation)
    replacements = record_replacements(model, patching, ablation=ablation)

    def compute_logits(circuit: Circuit) -> Tensor:
        with ablated(model, Surgery(circuit, replacements), mask=selection.mask):
            logits: Tensor = model.hf(**hf_inputs(selection.input_ids, selection.mask)).logits
        if on_logits is not None:
            on_logits(logits[:, -selection.n_steps :])
        return logits[:, -selection.n_steps :]  # (prompt, step, vocab)

    def find_kl(logits: Tensor) -> float:
        return float(kl_divergence(dense[selection.counted], logits[selection.counted]).mean())

    def find_loss(logits: Tensor) -> float:
        if metric == "kl":
            return find_kl(logits)
        means = [METRICS[metric](Answers(selection, some, dense)).mean() for some in (logits, dense)]
        return METRICS[metric].sign * float(means[0] - means[1])

    heads = tuple(Head(layer, index) for layer in range(n_layers) for index in range(n_heads))
    now = Circuit(heads=heads, mlps=tuple(range(n_layers)), ablation=ablation)
    dense = compute_logits(now)
    loss_now, kl_now, trace = 0.0, 0.0, []
    for layer in reversed(range(n_layers)):
        candidates: list[Component] = [Head(layer, index) for index in range(n_heads)]
        candidates += [MLP(layer)] if mlps else []
        for candidate in candidates:
            without = replace(
                now,
                heads=tuple(head for head in now.heads if head != candidate),
                mlps=tuple(index for index in now.mlps if MLP(index) != candidate),
            )
            logits = compute_logits(without)
            loss = find_loss(logits)
            removed = loss - loss_now < alpha
            trace.append(Decision(candidate, loss_now, loss, removed))
            if removed:
                now, loss_now, kl_now = without, loss, find_kl(logits)
    return now, SearchRecord(alpha=alpha, order="paper", kl=kl_now, trace=tuple(trace), metric=metric)
