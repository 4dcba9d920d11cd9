"""The paper's search done plainly: a full hooked forward of the Hugging Face model for each candidate.

The oracle that the engine in `exporter.search.engine` is held to; nothing in the product uses it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.circuit import MLP, Ablation, Align, Circuit, Component, Decision, Head, Mean
from exporter.dataset import Dataset
from exporter.families import FAMILIES
from exporter.hooks import ablated, hf_inputs, record_replacements
from exporter.loading import LanguageModel


@torch.inference_mode()
def find_circuit_hooked(
    model: LanguageModel,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    ablation: Ablation = "mean",
    mean: Mean = "position",
    align: Align = "left",
    mlps: bool = True,
) -> Circuit:
    """DESIGN section 4, word by word."""
    family = FAMILIES[model.family]
    n_layers, n_heads = family.n_layers(model.hf), family.n_heads(model.hf)
    replacements = record_replacements(model, patching, ablation=ablation, mean=mean, align=align)

    def log_probabilities(circuit: Circuit) -> Tensor:
        with ablated(model, circuit, replacements, mask=selection.mask):
            logits = model.hf(**hf_inputs(selection.input_ids, selection.mask)).logits[:, -selection.n_steps :]
        return torch.log_softmax(logits[selection.counted].double(), dim=-1)  # (answer, vocab)

    heads = tuple(Head(layer, index) for layer in range(n_layers) for index in range(n_heads))
    settings = {"ablation": ablation, "mean": mean, "align": align, "alpha": alpha}
    now = Circuit(heads=heads, mlps=tuple(range(n_layers)), order="paper", **settings)
    log_p = log_probabilities(now)
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
            log_q = log_probabilities(without)
            kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
            removed = kl - kl_now < alpha
            trace.append(Decision(candidate, kl_now, kl, removed))
            if removed:
                now, kl_now = without, kl
    return replace(now, kl=kl_now, trace=tuple(trace))
