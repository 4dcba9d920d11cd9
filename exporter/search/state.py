"""The network that a gradual search works on: what is left of the dense model, with weights of its own.

Its steps hold the units that stay, and one constant each, by position where the ablation's means are. A step of which
nothing stays gives its constant to the step before it: nothing reads the residual in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
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


@dataclass(frozen=True, eq=False)
class Packed:
    """A state as data: its circuit, and tensors by name, such as `2/m3.W_in` and `2/constant` of the third step."""

    circuit: Circuit
    tensors: Mapping[str, Tensor]


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


def pack_state(state: State) -> Packed:
    """A state as data; it shares the tensors."""
    tensors: dict[str, Tensor] = {}
    for index, step in enumerate(state.model.steps):
        for sublayer in step.sublayers:
            tensors |= {f"{index}/{sublayer.name}.{name}": t.detach() for name, t in _get_tensors(sublayer).items()}
        if step.constant is not None:
            tensors[f"{index}/constant"] = step.constant.detach()
    return Packed(state.circuit, tensors)


def unpack_state(packed: Packed, start: State) -> State:
    """The state that was packed, with tensors of its own; `start` is the dense model's.

    Raises InputError: the tensors are not those of the circuit's units.
    """
    start.model.check_circuit(packed.circuit)
    cut: dict[str, Sublayer] = {}
    for step in start.model.steps:
        for sublayer in step.load().sublayers:
            site = sublayer.site_for(packed.circuit)
            if units := site.kept(packed.circuit):
                cut[sublayer.name] = site.keep(units)
    left, steps = dict(packed.tensors), list[Step]()
    for index in range(len(start.model.steps)):
        here = [cut.pop(name) for name in list(cut) if any(key.startswith(f"{index}/{name}.") for key in left)]
        sublayers = []
        for sublayer in here:
            wanted = _get_tensors(sublayer)
            own = {name: left.pop(f"{index}/{sublayer.name}.{name}", None) for name in wanted}
            sublayers.append(sublayer.rebuild({name: _take(own[name], like) for name, like in wanted.items()}))
        constant = left.pop(f"{index}/constant", None)
        if constant is not None:
            whole = _spread(None, start.model)
            constant = _take(constant, whole if constant.ndim == whole.ndim else whole[0])
        if sublayers or constant is not None:
            steps.append(Step(sublayers, constant))
    if cut or left:
        raise _refusal()
    return State(packed.circuit, start.model.replace(steps=steps))


def _take(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A tensor that was read, as memory of its own: what a product of it rounds to depends on how it lies there."""
    fits = tensor is not None and tensor.shape == like.shape and tensor.dtype == like.dtype
    if tensor is None or not fits or not torch.isfinite(tensor).all():
        raise _refusal()
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _refusal() -> InputError:
    return InputError("the weights of an interrupted search are not those of its circuit; start over without --resume")


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
    return Surgery(state.circuit, surgery.replacements, {name: edit.detach().cpu() for name, edit in edits.items()})


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
    # contiguous, as a search that is resumed reads them: what a product rounds to depends on how tensors lie in memory
    return sublayer.rebuild(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in _get_tensors(sublayer).items()}
    )


def _get_tensors(sublayer: Sublayer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in sublayer.tensors.items() if tensor is not None}


def _spread(constant: Tensor | None, model: CircuitModel) -> Tensor:
    """A constant by position where the network has those, else a vector; zeros for none."""
    shape = (*([] if model.length is None else [model.length]), model.W_E.shape[1])
    empty = torch.zeros(shape, dtype=model.W_E.dtype, device=model.W_E.device)
    return empty if constant is None else empty + constant.detach().to(empty)
