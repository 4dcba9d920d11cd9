"""Scores of units: how much a gate on each of them matters, at the state that the network is in.

A gate g on a unit blends its activation a with its mean m: m + g (a - m). It is 1 where the unit is there and 0 where
it is removed. The score is the empirical Fisher information of the gate: the gradient of the log-likelihood of a token
that is drawn from the *dense* model's distribution, squared, and averaged over prompts (Theis et al., arXiv 1801.05787;
Kwon et al., arXiv 2204.09656). Half of it is, to second order, by how much KL(dense || circuit) grows without the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from exporter.network.model import CircuitModel
from exporter.network.positions import Positions
from exporter.network.step import Step, find_last_attending
from exporter.rewrite.replacements import Replacements
from exporter.tasks.dataset import Dataset


def finest_sites(model: CircuitModel) -> Iterator[tuple[str, int]]:
    """The name of each sublayer's finest site (heads, neurons), and how many units it has."""
    for sublayer in model.sublayers():
        site = sublayer.sites[-1]
        yield site.name, len(site.units)


def run_gated(
    model: CircuitModel, part: Dataset, means: Replacements, gates: Mapping[str, Tensor], *, recompute: bool = False
) -> Tensor:
    """Logits at the answer positions, (prompt, step, vocab), with a gate for each prompt and unit, (prompt, unit).

    `recompute` as in `run_to_last`.
    """
    at = model.place(part.input_ids, part.mask, length=part.length).crop(part.n_steps)
    x = model.embed(part.input_ids, at)
    last = find_last_attending(model.steps)
    for index, step in enumerate(model.steps):
        n_last = part.n_steps if index >= last else None
        run = partial(_run_step, step.load(), at=at, n_last=n_last, means=means, gates=gates)
        x = checkpoint(run, x, use_reentrant=False) if recompute else run(x)
    return model.unembed(x[:, -part.n_steps :])


def _run_step(
    step: Step, x: Tensor, at: Positions, n_last: int | None, means: Replacements, gates: Mapping[str, Tensor]
) -> Tensor:
    """`Step.forward` with gates."""
    here = at.take_last(n_last)
    out = step.add_constant(x if n_last is None else x[:, -n_last:], at)
    for sublayer in step.sublayers:
        site = sublayer.sites[-1]
        activations = site.read(x, at, n_last=n_last)  # (prompt, pos, unit, ...)
        mean = here.pick(means.tables[site.name].to(activations))
        gate = gates[site.name][:, None]  # (prompt, 1, unit)
        if activations.ndim == 4:
            gate = gate[..., None]
        out = out + site.project(mean + gate * (activations - mean))
    return out


def score_units(
    model: CircuitModel,
    parts: Sequence[Dataset],
    likelihoods: Sequence[Callable[[Tensor], Tensor]],
    means: Replacements,
    *,
    recompute: bool = False,
) -> dict[str, Tensor]:
    """The Fisher information of each unit's gate, by site: (unit,) float64, a sum over prompts.

    likelihoods: for each part, of its logits, (prompt, step, vocab), the log-likelihood that is asked for, a sum over
    its prompts. `means` are those of the model's own units, at the state that it is in. No gradient of a weight is
    taken.
    """
    total = {name: torch.zeros(n, dtype=torch.float64) for name, n in finest_sites(model)}
    device = model.W_U.device
    for part, likelihood in zip(parts, likelihoods, strict=True):
        gates = {n: torch.ones(len(part), k, device=device, requires_grad=True) for n, k in finest_sites(model)}
        logits = run_gated(model, part, means, gates, recompute=recompute)
        slopes = torch.autograd.grad(likelihood(logits), list(gates.values()))
        for name, slope in zip(gates, slopes, strict=True):
            total[name] += slope.double().square().sum(0).cpu()
    return total


@contextmanager
def trained(model: CircuitModel) -> Iterator[list[torch.nn.Parameter]]:
    """Within the context, what healing changes takes gradients: `list_trained`."""
    chosen = list_trained(model)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
            parameter.grad = None


def list_trained(model: CircuitModel) -> list[torch.nn.Parameter]:
    """The projections of every sublayer with their input biases, and the constants of every step."""
    chosen = []
    for step in model.steps:
        for sublayer in step.sublayers:
            for name, tensor in sublayer.named_parameters(recurse=False):
                if name.startswith("W_") or (name.startswith("b_") and name != sublayer.out_bias_name):
                    chosen.append(tensor)
        if step.constant is not None:
            chosen.append(step.constant)
    return chosen
