"""The network that a gradual search works on: what is left of the dense model, with weights of its own.

Its steps hold the units that stay, and one constant each, by position where the ablation's means are. A step of which
nothing stays gives its constant to the step before it: nothing reads the residual in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Ablation, Circuit, Head
from exporter.network.model import CircuitModel
from exporter.network.step import Step, Sublayer
from exporter.rewrite.replacements import Replacements
from exporter.rewrite.slicing import slice_step
from exporter.rewrite.surgery import SHIFT, Surgery, slice_model


@dataclass(frozen=True, eq=False)
class State:
    """A circuit, and the network that computes it now."""

    circuit: Circuit
    model: CircuitModel


def find_whole(dense: CircuitModel, ablation: Ablation) -> Circuit:
    """The circuit of every head and every neuron."""
    sites = [sublayer.sites[-1] for sublayer in dense.sublayers()]
    return Circuit(
        heads=tuple(Head(site.layer, unit) for site in sites if site.kind == "heads" for unit in site.units),
        mlps=tuple(site.layer for site in sites if site.kind == "neurons"),
        ablation=ablation,
    )


def start_state(dense: CircuitModel, ablation: Ablation, length: int) -> State:
    """The dense model itself, whose tensors it shares until the first cut."""
    model = dense.replace(length=length if ablation.fixed_length else None, align=ablation.align)
    return State(find_whole(dense, ablation), model)


def cut_state(state: State, circuit: Circuit, means: Replacements) -> State:
    """What is left of a network with a circuit's units; `means` are those of the network's own units.

    It shares no tensor of a sublayer with what it was cut from, so that healing changes it alone.
    """
    model, steps = state.model, list[Step]()
    for step in model.steps:
        cut = slice_step(step.load(), circuit, means)
        if len(cut.sublayers) or not steps:
            steps.append(Step([_copy(sublayer) for sublayer in cut.sublayers], _spread(cut.constant, model)))
        elif cut.constant is not None:
            before = steps[-1].constant
            assert before is not None
            steps[-1] = Step(list(steps[-1].sublayers), before + _spread(cut.constant, model))
    return State(circuit, model.replace(steps=steps))


def copy_state(state: State) -> State:
    """A copy with tensors of its own."""
    steps = [
        Step([_copy(sublayer) for sublayer in step.sublayers], None if step.constant is None else step.constant.clone())
        for step in state.model.steps
    ]
    return State(state.circuit, state.model.replace(steps=steps))


def make_surgery(dense: CircuitModel, state: State, replacements: Replacements) -> Surgery:
    """The surgery that makes this network of the dense model: weights that differ from it, and constants, are edits.

    `replacements` are the dense model's, with tables for the neurons of the layers that the circuit names.
    """
    surgery = Surgery(state.circuit, select_tables(replacements, state.circuit))
    edits: dict[str, Tensor] = {}
    sliced = slice_model(dense, surgery)
    for step, group in zip(state.model.steps, group_steps(dense, state.model), strict=True):
        # each step's own constant goes, for large ones that cancel each other only in sum would be rounded
        constants = [step.constant, *[None] * (len(group) - 1)]
        for index, constant in zip(group, constants, strict=True):
            name = f"{dense.steps[index].sublayers[0].name}.{SHIFT}"
            by_means = sliced.steps[index].constant
            if constant is not None or by_means is not None:
                edits[name] = _spread(constant, state.model) - _spread(by_means, state.model)
        for sublayer in step.sublayers:
            edits |= {
                f"{sublayer.name}.{name}": tensor.detach()
                for name, tensor in sublayer.named_parameters(recurse=False)
                if name != sublayer.out_bias_name
            }
    return Surgery(state.circuit, surgery.replacements, {name: edit.detach() for name, edit in edits.items()})


def group_steps(dense: CircuitModel, model: CircuitModel) -> list[list[int]]:
    """For each step of a network, the dense steps whose constants it holds: its own, and removed ones behind it.

    Removed steps before all others have a step of their own.
    """
    kept = {sublayer.name for sublayer in model.sublayers()}
    groups: list[list[int]] = []
    for index, step in enumerate(dense.steps):
        if not groups or any(sublayer.name in kept for sublayer in step.sublayers):
            groups.append([])
        groups[-1].append(index)
    return groups


def select_tables(replacements: Replacements, circuit: Circuit) -> Replacements:
    """The tables that a circuit's surgery holds: of neurons only those of the layers that it cuts to some."""
    cut = {f"neurons.{layer}" for layer, _ in circuit.neurons}
    tables = {name: t for name, t in replacements.tables.items() if not name.startswith("neurons.") or name in cut}
    return Replacements(tables, replacements.ablation)


def pick_tables(replacements: Replacements, model: CircuitModel) -> Replacements:
    """The dense model's tables for the units that a network has left, as `cut_state` and `score_units` take them."""
    tables = dict(replacements.tables)
    for sublayer in model.sublayers():
        site = sublayer.sites[-1]
        tables[site.name] = tables[site.name][:, list(site.units)]
    return Replacements(tables, replacements.ablation)


def _copy(sublayer: Sublayer) -> Sublayer:
    tensors = {name: None if t is None else t.detach().clone() for name, t in sublayer.tensors.items()}
    return sublayer.rebuild(tensors)


def _spread(constant: Tensor | None, model: CircuitModel) -> Tensor:
    """A constant by position where the network has those, else a vector; zeros for none."""
    shape = (*([] if model.length is None else [model.length]), model.W_E.shape[1])
    return torch.zeros(shape, dtype=model.W_E.dtype) if constant is None else constant.detach().expand(shape).clone()
