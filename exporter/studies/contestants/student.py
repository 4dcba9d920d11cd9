"""A small student, trained from scratch on the dense model's answers to the patching prompts.

It has the dense model's architecture with few layers and a share of the heads and hidden units of each, all of them
random, between the dense model's embedding and unembedding, which a student would hardly learn from a thousand prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.step import Step, Sublayer
from exporter.search.cost import group_by_layer
from exporter.studies.contestants.study import Candidate, Study

SHAPES = ((1, 0.125), (2, 0.125), (2, 0.5), (4, 0.5))  # layers, and the share of the units of each
STEPS = 2000


def distil_students(study: Study) -> Iterator[Candidate]:
    """A student of each shape that is smaller than the dense model."""
    n_layers = len(group_by_layer(study.dense.steps))
    for index, (depth, share) in enumerate(SHAPES):
        if depth > n_layers:
            continue
        model = make_student(study.start.model, depth, share, study.make_generator(10 + index))
        steps = study.healer.heal(model, steps=STEPS, seed=study.plan.job.seed)
        spent = f"random weights, the dense model's embeddings; {steps} of {STEPS} steps"
        yield Candidate(
            f"student, {depth} layers, {share:.3g} of the units",
            study.wrap(model),
            f"{spent}, {len(study.healer.lessons):,} prompts",
        )


def make_student(dense: CircuitModel, depth: int, share: float, generator: torch.Generator) -> CircuitModel:
    """A network with the first layers' architecture, `share` of their units, and random weights."""
    rows = [] if dense.length is None else [dense.length]
    steps = []
    for layer in group_by_layer(dense.steps)[:depth]:
        for step in layer:
            sublayers = [_draw(sublayer, depth, share, generator) for sublayer in step.load().sublayers]
            steps.append(Step(sublayers, torch.zeros(*rows, dense.W_E.shape[1])))
    return dense.replace(steps=steps)


def _draw(sublayer: Sublayer, depth: int, share: float, generator: torch.Generator) -> Sublayer:
    """A sublayer with random weights: 1 / sqrt(inputs), less in the output, as the residual is a sum of all of them."""
    site = sublayer.sites[-1]
    few: Sublayer = site.keep(site.units[: max(1, round(share * len(site.units)))])
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in few.tensors.items():
        if tensor is None:
            tensors[name] = None
        elif tensor.ndim == 2:
            scale = tensor.shape[0] ** -0.5 / ((2 * depth) ** 0.5 if name == sublayer.out_weight_name else 1)
            tensors[name] = scale * torch.randn(tensor.shape, generator=generator)
        else:
            tensors[name] = torch.ones(tensor.shape) if name.endswith("norm") else torch.zeros(tensor.shape)
    norm = few.norm
    weight = None if norm.weight is None else torch.ones_like(norm.weight)
    bias = None if norm.bias is None else torch.zeros_like(norm.bias)
    return few.rebuild(tensors, norm=Norm(weight, bias, eps=norm.eps, rms=norm.rms))
