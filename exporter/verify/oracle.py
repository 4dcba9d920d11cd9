"""The oracle: the Hugging Face model itself, with forward hooks that ablate. Slow and obvious.

A pre-hook on an attention output projection overwrites z of the removed heads, which leaves b_O in place; a pre-hook on
an MLP's down projection overwrites the removed hidden units; a hook on an MLP overwrites its whole output. Edits are
written into the Hugging Face model's weights, and undone afterwards. Means are recorded by hooks, too, so that the
ablation shares no code with CircuitModel, and agreement between the two is evidence. Only edits use the adapter's
mapping of weight names, which has its own tests against the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from exporter.circuit import Ablation, Align, Circuit
from exporter.errors import InputError
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel
from exporter.rewrite.replacements import CHUNK, Replacements
from exporter.rewrite.surgery import SHIFT, Surgery
from exporter.tasks.dataset import Dataset


def hf_inputs(input_ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Keyword arguments of the Hugging Face model for (batch, pos) prompts, padded on the left where mask is False."""
    if mask is None:
        return {"input_ids": input_ids, "use_cache": False}
    position_ids = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return {
        "input_ids": input_ids,
        "attention_mask": mask.long(),
        "position_ids": position_ids,
        "use_cache": False,
    }


def record_replacements(
    model: LanguageModel, patching: Dataset, *, ablation: Ablation, neurons: Collection[int] = ()
) -> Replacements:
    """The replacement tables of all heads and MLPs, and of the neurons of some layers, recorded by hooks.

    Shapes as in `Replacements`, float64.
    """
    family, hf = FAMILIES[model.family], model.hf
    totals: dict[str, Tensor] = {}
    counts = torch.zeros(patching.length, dtype=torch.float64)  # how many prompts have each position
    now: dict[str, Tensor] = {}

    def add_up(name: str, values: Tensor) -> None:
        """Add the values' sum by position: one-hot (pos, prompt * token) @ (prompt * token, features)."""
        flat = values.double().flatten(0, 1).flatten(1)  # (token, features)
        total = (now["by_position"].to(values.device) @ flat).cpu()
        totals[name] = totals[name].add_(total) if name in totals else total

    with ExitStack() as stack, torch.inference_mode():
        for layer, block in enumerate(family.blocks(hf)):
            handles = [
                _on_input(family.attention_output(block), partial(add_up, f"heads.{layer}")),
                _on_output(family.mlp(block), partial(add_up, f"mlp.{layer}")),
            ]
            if layer in neurons:
                handles.append(_on_input(family.mlp_output(block), partial(add_up, f"neurons.{layer}")))
            for handle in handles:
                stack.callback(handle.remove)
        for part in patching.take(patching.order_by_length()).split(CHUNK):
            real = torch.ones_like(part.input_ids, dtype=torch.bool) if part.mask is None else part.mask
            padding = int((~real).all(0).sum())  # on the left of all these prompts: nothing is computed there
            real, input_ids = real[:, padding:], part.input_ids[:, padding:]
            rows = find_rows(real, ablation.align, patching.length)
            one_hot = torch.nn.functional.one_hot(rows, patching.length) * real[..., None]  # (prompt, token, pos)
            now["by_position"] = one_hot.flatten(0, 1).T.double()  # (pos, prompt * token)
            counts += now["by_position"].sum(1)
            hf.base_model(**hf_inputs(input_ids, None if real.all() else real))  # hooks are all in its blocks

    def reduce(name: str, total: Tensor) -> Tensor:
        table = _average(total, counts, ablation)  # (pos or 1, features)
        return table.unflatten(-1, (family.n_heads(hf), -1)) if name.startswith("heads.") else table

    return Replacements({name: reduce(name, total) for name, total in totals.items()}, ablation)


def _average(total: Tensor, counts: Tensor, ablation: Ablation) -> Tensor:
    """The replacement table of an ablation, (pos or 1, features), from sums by position, (pos, features)."""
    if ablation.kind == "zero":
        return torch.zeros_like(total[:1])
    over_all = (total.sum(0) / counts.sum())[None]
    if ablation.by == "global":
        return over_all
    average = over_all.repeat(len(total), 1)
    average[counts > 0] = total[counts > 0] / counts[counts > 0, None]
    return average


def _on_input(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, args: see(args[0]))


def _on_output(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _module, _args, out: see(out))


def find_rows(real: Tensor, align: Align, length: int) -> Tensor:
    """Each token's row in a table of `length` positions: real (batch, pos) bool, False at padding, to int64."""
    from_end = real.shape[1] - 1 - torch.arange(real.shape[1])  # (pos,)
    from_start = (real.long().cumsum(dim=1) - 1).clamp(min=0)  # (batch, pos)
    return from_start if align == "left" else (length - 1 - from_end).expand(real.shape)


@contextmanager
def ablated(model: LanguageModel, surgery: Surgery, *, mask: Tensor | None = None) -> Iterator[None]:
    """Within the context, the Hugging Face model computes the circuit; hooks and edits are gone afterwards.

    `mask`, (batch, pos) bool, is the mask of the prompts that the model will run on; None without padding. Raises
    InputError: the circuit names components that the model lacks, or edits meet offloaded weights.
    """
    family, hf = FAMILIES[model.family], model.hf
    circuit, tables, align = surgery.circuit, surgery.replacements.tables, surgery.circuit.ablation.align
    d_mlp = max((table.shape[1] for name, table in tables.items() if name.startswith("neurons.")), default=0)
    circuit.check_fits(n_layers=family.n_layers(hf), n_heads=family.n_heads(hf), d_mlp=d_mlp)
    with ExitStack() as stack:
        stack.enter_context(edited(model, surgery))
        for layer, block in enumerate(family.blocks(hf)):
            handles = []
            kept_heads, kept_neurons = circuit.heads_of(layer), circuit.neurons_of(layer)
            if removed := [head for head in range(family.n_heads(hf)) if head not in kept_heads]:
                hook = _head_hook(removed, tables[f"heads.{layer}"], align, mask)
                handles.append(family.attention_output(block).register_forward_pre_hook(hook))
            if kept_neurons is not None:
                hook = _neuron_hook(kept_neurons, tables[f"neurons.{layer}"], align, mask)
                handles.append(family.mlp_output(block).register_forward_pre_hook(hook))
            elif layer not in circuit.mlps:
                hook = _mlp_hook(tables[f"mlp.{layer}"], align, mask)
                handles.append(family.mlp(block).register_forward_hook(hook))
            for name, module in ((f"a{layer}", family.attention_output(block)), (f"m{layer}", family.mlp(block))):
                if (shift := surgery.edits.get(f"{name}.{SHIFT}")) is not None:
                    handles.append(module.register_forward_hook(_shift_hook(shift, align, mask)))
            for handle in handles:
                stack.callback(handle.remove)
        yield


@contextmanager
def edited(model: LanguageModel, surgery: Surgery) -> Iterator[None]:
    """Within the context, the Hugging Face model's weights hold the surgery's edits; afterwards, the original values.

    Raises InputError: there are edits, and the model's weights are offloaded.
    """
    family, hf = FAMILIES[model.family], model.hf
    edits = {name: edit for name, edit in surgery.edits.items() if not name.endswith(f".{SHIFT}")}
    if edits and any(parameter.is_meta for parameter in hf.parameters()):
        raise InputError("edited weights cannot be checked on a model that is offloaded; load it without a device map")
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, block in enumerate(family.blocks(hf)) if edits else ():
                own = {
                    name: edit for name, edit in edits.items() if name.partition(".")[0] in (f"a{layer}", f"m{layer}")
                }
                if own:
                    before += [(parameter, parameter.clone()) for parameter in block.parameters()]
                    _write(model, block, layer, surgery.circuit, own)
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


def _write(model: LanguageModel, block: Any, layer: int, circuit: Circuit, edits: Mapping[str, Tensor]) -> None:
    """Write the edits of one block, each into the rows or columns of the units that the circuit keeps."""
    family, hf = FAMILIES[model.family], model.hf
    for step in family.build_steps(block, layer, hf.config):
        for sublayer in step.sublayers:
            tensors = {name: tensor for name, tensor in sublayer.tensors.items() if tensor is not None}
            rows = _find_rows_of_units(tensors, family.n_heads(hf), circuit, layer)
            for name, tensor in tensors.items():
                if (edit := edits.get(f"{sublayer.name}.{name}")) is None:
                    continue
                if name not in rows:
                    tensor.copy_(edit)
                else:
                    axis = 0 if name in ("W_O", "W_out") else -1
                    tensor.index_copy_(axis, torch.tensor(rows[name], device=tensor.device), edit.to(tensor))
            family.store(block, sublayer)


def _find_rows_of_units(
    tensors: Mapping[str, Tensor], n_heads: int, circuit: Circuit, layer: int
) -> dict[str, list[int]]:
    """By name, for tensors with rows or columns per unit: the indices of those of the kept units."""
    neurons = circuit.neurons_of(layer)
    if "W_O" not in tensors:
        own = ("W_in", "b_in", "W_gate", "b_gate", "W_out")
        return {} if neurons is None else {name: list(neurons) for name in own}
    d_head = len(tensors["W_O"]) // n_heads
    group = n_heads // (tensors["W_K"].shape[1] // d_head)
    heads = circuit.heads_of(layer)
    queries = [head * d_head + i for head in heads for i in range(d_head)]
    keys = [head * d_head + i for head in sorted({head // group for head in heads}) for i in range(d_head)]
    return {**dict.fromkeys(("W_Q", "b_Q", "W_O"), queries), **dict.fromkeys(("W_K", "b_K", "W_V", "b_V"), keys)}


@torch.inference_mode()
def hooked_logits(model: LanguageModel, surgery: Surgery, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of the circuit at every position: (batch, pos) int64 -> (batch, pos, vocab).

    `mask`, (batch, pos) bool, is False at padding on the left. Raises InputError as `ablated` does.
    """
    with ablated(model, surgery, mask=mask):
        logits: Tensor = model.hf(**hf_inputs(input_ids, mask)).logits
    return logits


def _look_up(table: Tensor, like: Tensor, align: Align, mask: Tensor | None) -> Tensor:
    """The table's row, of (pos or 1, ...), for each token of like, (batch, pos, ...): (batch or 1, pos or 1, ...)."""
    table = table.to(like)
    if len(table) == 1:
        return table[None]
    real = torch.ones(1, like.shape[1], dtype=torch.bool) if mask is None else mask.cpu()
    return table[find_rows(real, align, len(table)).to(like.device)]


def _head_hook(removed: list[int], table: Tensor, align: Align, mask: Tensor | None) -> Any:
    n_heads = table.shape[1]

    def overwrite(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].unflatten(-1, (n_heads, -1)).clone()  # (batch, pos, head, d_head)
        z[:, :, removed] = _look_up(table[:, removed], z, align, mask)  # (batch or 1, pos or 1, removed, d_head)
        return (z.flatten(-2), *args[1:])  # (batch, pos, head * d_head)

    return overwrite


def _mlp_hook(table: Tensor, align: Align, mask: Tensor | None) -> Any:
    def overwrite(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return _look_up(table, out, align, mask).expand_as(out)

    return overwrite


def _neuron_hook(kept: tuple[int, ...], table: Tensor, align: Align, mask: Tensor | None) -> Any:
    removed = sorted(set(range(table.shape[1])) - set(kept))

    def overwrite(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()  # (batch, pos, d_mlp)
        hidden[:, :, removed] = _look_up(table[:, removed], hidden, align, mask)
        return (hidden, *args[1:])

    return overwrite


def _shift_hook(shift: Tensor, align: Align, mask: Tensor | None) -> Any:
    table = shift[None] if shift.ndim == 1 else shift  # (pos or 1, d_model)

    def add(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + _look_up(table, out, align, mask)

    return add
