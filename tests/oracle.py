"""The paper's search done plainly: a full hooked forward of the Hugging Face model for each candidate.

The oracle that the engine in `exporter.search.greedy` is held to; nothing in the product uses it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.circuit import MLP, Ablation, Circuit, Component, Decision, Head, SearchRecord
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel
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
) -> tuple[Circuit, SearchRecord]:
    """docs/design.md, section 4, word by word."""
    family = FAMILIES[model.family]
    n_layers, n_heads = family.n_layers(model.hf), family.n_heads(model.hf)
    ablation = Ablation.take(ablation)
    replacements = record_replacements(model, patching, ablation=ablation)

    def compute_logits(circuit: Circuit) -> Tensor:
        with ablated(model, Surgery(circuit, replacements), mask=selection.mask):
            logits: Tensor = model.hf(**hf_inputs(selection.input_ids, selection.mask)).logits
        return logits[:, -selection.n_steps :][selection.counted]  # (answer, vocab)

    heads = tuple(Head(layer, index) for layer in range(n_layers) for index in range(n_heads))
    now = Circuit(heads=heads, mlps=tuple(range(n_layers)), ablation=ablation)
    dense = compute_logits(now)
    kl_now, trace = 0.0, []
    for layer in reversed(range(n_layers)):
        candidates: list[Component] = [Head(layer, index) for index in range(n_heads)]
        candidates += [MLP(layer)] if mlps else []
        for candidate in candidates:
            without = replace(
                now,
                heads=tuple(head for head in now.heads if head != candidate),
                mlps=tuple(index for index in now.mlps if MLP(index) != candidate),
            )
            kl = float(kl_divergence(dense, compute_logits(without)).mean())
            removed = kl - kl_now < alpha
            trace.append(Decision(candidate, kl_now, kl, removed))
            if removed:
                now, kl_now = without, kl
    return now, SearchRecord(alpha=alpha, order="paper", kl=kl_now, trace=tuple(trace))
