"""Surgery: all changes to a dense model, as data.

A circuit says which components stay, tables of replacements stand in for the others, and *edits* are weights and
constants that differ from the dense model's, because they were refitted or healed. The oracle, rewriting and the
exported graph take the same Surgery. It is hashed, saved and loaded, so that no stage computes it a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from exporter.checks import require_type
from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.files import parse_json, require_regular
from exporter.network.dense import HasDense, get_dense
from exporter.network.model import CircuitModel
from exporter.network.step import Step, Sublayer
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.rewrite.slicing import add_constants, slice_step
from exporter.tasks.dataset import Dataset

SHIFT = "shift"
_FORMAT = "surgery 2"  # the circuit's name in the metadata; the only one, for safetensors writes several in any order


@dataclass(frozen=True, eq=False)
class Surgery:
    """A circuit, its replacements, and edits by name.

    An edit `a3.W_O` replaces a tensor of layer 3's attention, `m3.W_in` one of its MLP, in the shape that the tensor
    has after slicing to the circuit. `a3.shift` or `m3.shift`, (d_model,) or by position (pos, d_model), is added to
    the sublayer's output, also where the whole sublayer is removed. Raises InputError: circuit and replacements have
    different ablations.
    """

    circuit: Circuit
    replacements: Replacements
    edits: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_type("circuit", self.circuit, Circuit)
        require_type("replacements", self.replacements, Replacements)
        if self.circuit.ablation != self.replacements.ablation:
            raise InputError(
                f"the circuit is for {self.circuit.ablation}, and its replacements for {self.replacements.ablation}; "
                "compute them with the circuit's ablation"
            )

    @property
    def sha256(self) -> str:
        """A hash over the circuit and the names, dtypes, shapes and bytes of all tables and edits."""
        digest = hashlib.sha256(json.dumps(self.circuit.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else bytes(tensor.tolist()))
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the circuit in its metadata; the same bytes for the same surgery."""
        metadata = {_FORMAT: json.dumps(self.circuit.to_json())}
        Path(path).write_bytes(save(self._tensors(), metadata=metadata))  # save_file would keep it from other users

    @classmethod
    def load(cls, path: str | Path) -> Surgery:
        """Read a file that `save` wrote. Raises InputError: unreadable, damaged, or of another version."""
        try:
            with safe_open(require_regular(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            if _FORMAT not in metadata:
                raise InputError(f"{path} is no surgery of this version; save it again")
            circuit = Circuit.from_json(parse_json(metadata[_FORMAT]))
        except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
            raise InputError(
                f"cannot load a surgery from {path} ({error}); give a file that Surgery.save wrote"
            ) from error
        parts: dict[str, dict[str, Tensor]] = {"table": {}, "edit": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind not in parts or not rest:
                raise InputError(f"{path} has the tensor {name!r}, which is of no surgery; save it again")
            parts[kind][rest] = tensor
        return cls(circuit, Replacements(parts["table"], circuit.ablation), parts["edit"])

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"table/{name}": table for name, table in self.replacements.tables.items()}
        named |= {f"edit/{name}": edit for name, edit in self.edits.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def plan_surgery(model: HasDense, circuit: Circuit, patching: Dataset) -> Surgery:
    """The surgery of a circuit without edits, with replacements computed on the patching set.

    Raises InputError: the circuit names components that the model lacks; prompts are longer than the model's positions.
    """
    require_type("circuit", circuit, Circuit)
    require_type("patching", patching, Dataset)
    dense = get_dense(model)
    dense.check_circuit(circuit)
    neurons = [layer for layer, _ in circuit.neurons]
    return Surgery(circuit, compute_replacements(dense, patching, ablation=circuit.ablation, neurons=neurons))


def slice_model(dense: CircuitModel, surgery: Surgery) -> CircuitModel:
    """The dense model with only the circuit's components, edited; `dense` is left as it is.

    The result's `count_parameters` is the circuit's size as defined in docs/design.md, section 4. Raises InputError:
    the circuit or an edit names something that the model lacks; a table is missing; a table or an edit has a shape that
    does not fit.
    """
    dense.check_circuit(surgery.circuit)
    _require_fit(dense, surgery)
    steps, unused = [], set(surgery.edits)
    for step in dense.steps:
        sliced = slice_step(step.load(), surgery.circuit, surgery.replacements)
        names = {sublayer.name for sublayer in step.sublayers}
        own = {name: edit for name, edit in surgery.edits.items() if name.partition(".")[0] in names}
        steps.append(_edit_step(sliced, own))
        unused -= set(own)
    if unused:
        raise InputError(f"the surgery edits {min(unused)}, which the model does not have")
    return dense.replace(steps=steps, length=surgery.replacements.length, align=surgery.circuit.ablation.align)


def _require_fit(dense: CircuitModel, surgery: Surgery) -> None:
    """Raise InputError for tables and shifts that are missing, or of another shape than the model's."""
    circuit, tables = surgery.circuit, surgery.replacements.tables
    if not tables:
        raise InputError("the surgery has no replacements; save it again")
    rows = surgery.replacements.length or 1
    for sublayer in dense.sublayers():
        site = sublayer.site_for(circuit)
        table, wanted = tables.get(site.name), (rows, *site.row_shape)
        if table is None and len(site.kept(circuit)) < len(site.units):
            raise InputError(f"the surgery has no replacements for {site.name}; save it again")
        if table is not None and (tuple(table.shape) != wanted or not table.is_floating_point()):
            raise InputError(f"the replacements of {site.name} have shape {tuple(table.shape)}, not {wanted}")
    d_model = dense.W_E.shape[1]
    for name, edit in surgery.edits.items():
        if not edit.is_floating_point() or not torch.isfinite(edit).all():
            raise InputError(f"the edit {name} has other values than finite numbers")
        if name.endswith(f".{SHIFT}") and tuple(edit.shape) not in ((d_model,), (1, d_model), (rows, d_model)):
            raise InputError(f"the edit {name} has shape {tuple(edit.shape)}, not ({d_model},) or {(rows, d_model)}")


def operate(dense: CircuitModel, surgery: Surgery) -> CircuitModel:
    """The small model: `dense` sliced, edited and folded. Raises InputError as `slice_model`."""
    return fold_model(slice_model(dense, surgery))


def rewrite_model(model: HasDense, circuit: Circuit, patching: Dataset) -> CircuitModel:
    """The circuit as a small model, with replacements computed on the patching set; `model` is left as it is.

    Raises InputError: the circuit names components that the model lacks; prompts are longer than the model's positions.
    """
    return operate(get_dense(model), plan_surgery(model, circuit, patching))


def _edit_step(step: Step, edits: Mapping[str, Tensor]) -> Step:
    """A sliced step with the edits of its sublayers. Raises InputError: an edit of a removed sublayer, or its shape."""
    if not edits:
        return step
    shifts = [edit for name, edit in edits.items() if name.endswith(f".{SHIFT}")]
    changes: dict[str, dict[str, Tensor]] = {}
    for name, edit in edits.items():
        owner, _, tensor = name.partition(".")
        if tensor != SHIFT:
            changes.setdefault(owner, {})[tensor] = edit
    sublayers: list[Sublayer] = []
    for sublayer in step.sublayers:
        own = changes.pop(sublayer.name, {})
        for tensor, edit in own.items():
            _require_shape(f"{sublayer.name}.{tensor}", edit, sublayer.tensors.get(tensor))
        sublayers.append(sublayer.rebuild(sublayer.tensors | own) if own else sublayer)
    if changes:
        name = next(iter(changes))
        raise InputError(f"the surgery edits {name}, of which nothing stays; edit {name}.{SHIFT}, or keep a part of it")
    constants = [*([] if step.constant is None else [step.constant]), *shifts]
    like: Any = next(step.parameters(), shifts[0] if shifts else None)
    return Step(sublayers, add_constants(constants, like.dtype))


def _require_shape(name: str, edit: Tensor, original: Tensor | None) -> None:
    if original is None or edit.shape != original.shape:
        wanted = "there is no such tensor" if original is None else f"what stays has {tuple(original.shape)}"
        raise InputError(f"the edit {name} has shape {tuple(edit.shape)}, and {wanted}")
