"""Cut a model to the components that stay; the contribution of a removed one becomes a constant of its step.

An ablated component's contribution does not depend on the prompt, so its weights can go and the constant stays. A
circuit's reported size is counted after slicing; `folds` then merges biases and constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.circuit import Circuit
from exporter.network.step import Step, Sublayer
from exporter.rewrite.replacements import Replacements


def slice_step(step: Step, circuit: Circuit, replacements: Replacements) -> Step:
    """One step with only the circuit's components, and the rest in its constant.

    A step whose sublayers are all gone stays as a constant.
    """
    kept: list[Sublayer] = []
    constants: list[Tensor] = [] if step.constant is None else [step.constant]
    for sublayer in step.sublayers:
        site = sublayer.site_for(circuit)
        units = site.kept(circuit)
        staying = set(units)
        if removed := tuple(unit for unit in site.units if unit not in staying):
            constants.append(site.contribution(removed, replacements.tables[site.name]))
        if units:
            kept.append(site.keep(units))
        elif site.bias is not None:  # the sublayer is dropped, so the step's constant takes its output bias
            constants.append(site.bias)
    like = next(step.parameters(), None)
    if like is None:
        return step
    return Step(kept, add_constants([c.to(like.device) for c in constants], like.dtype))


def add_constants(constants: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """The sum of constants, each (d_model,) or (pos or 1, d_model), in float64 and rounded to `dtype`.

    Returns (d_model,), or (pos, d_model) where a constant differs by position; None where the sum is zero.
    """
    if not constants:
        return None
    total = torch.stack([c.double() for c in torch.broadcast_tensors(*constants)]).sum(0)
    if total.ndim == 2 and total.shape[0] == 1:
        total = total[0]  # (d_model,): the same at every position
    return total.to(dtype) if total.any() else None
