"""The oracle: the Hugging Face model itself, with forward hooks that ablate. Slow and obvious.

A pre-hook on an attention output projection overwrites z of the removed heads, which leaves b_O in
place; a hook on an MLP overwrites its whole output. Nothing here is shared with CircuitModel: the
means are recorded by hooks, too, so that agreement between the two means something.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exporter.circuit import Ablation, Align, Circuit, Mean
from exporter.dataset import Dataset
from exporter.families import FAMILIES
from exporter.loading import LanguageModel
from exporter.means import CHUNK, Replacements


def hf_inputs(input_ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """What the Hugging Face model is given for (batch, pos) prompts that may be padded on the left."""
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
    model: LanguageModel, patching: Dataset, *, ablation: Ablation, mean: Mean, align: Align = "left"
) -> Replacements:
    """The replacements of every component, taken on the dense model by hooks (see `Replacements`)."""
    family, hf = FAMILIES[model.family], model.hf
    n_layers, n_heads = family.n_layers(hf), family.n_heads(hf)
    z: list[list[Tensor]] = [[] for _ in range(n_layers)]
    mlp: list[list[Tensor]] = [[] for _ in range(n_layers)]
    sums = torch.zeros(0)
    now: dict[str, Tensor] = {}

    def add_up(seen: Tensor) -> Tensor:
        """One-hot positions against values: (pos, prompt * token) @ (prompt * token, ...)."""
        flat = seen.double().flatten(0, 1).flatten(1)  # (token, features)
        return now["by_position"].to(seen.device) @ flat

    with ExitStack() as stack, torch.inference_mode():
        for layer, block in enumerate(family.blocks(hf)):
            read_z = family.attention_output(block).register_forward_pre_hook(
                lambda _module, args, seen=z[layer]: seen.append(add_up(args[0]).cpu())
            )
            read_mlp = family.mlp(block).register_forward_hook(
                lambda _module, _args, out, seen=mlp[layer]: seen.append(add_up(out).cpu())
            )
            stack.callback(read_z.remove)
            stack.callback(read_mlp.remove)
        for part in patching.split(CHUNK):
            real = torch.ones_like(part.input_ids, dtype=torch.bool) if part.mask is None else part.mask
            rows = find_rows(real, align, patching.length)
            one_hot = torch.nn.functional.one_hot(rows, patching.length) * real[..., None]  # (prompt, token, pos)
            now["by_position"] = one_hot.flatten(0, 1).T.double()  # (pos, prompt * token)
            sums = sums + now["by_position"].sum(1) if len(sums) else now["by_position"].sum(1)
            hf(**hf_inputs(part.input_ids, part.mask), logits_to_keep=1)

    def replacement(totals: list[Tensor]) -> Tensor:
        total = torch.stack(totals).sum(0)  # (pos, features)
        if ablation == "zero":
            return torch.zeros_like(total[:1])
        over_all = (total.sum(0) / sums.sum())[None]
        if mean == "global":
            return over_all
        average = over_all.repeat(len(total), 1)
        average[sums > 0] = total[sums > 0] / sums[sums > 0, None]
        return average

    return Replacements(
        z=tuple(replacement(totals).unflatten(-1, (n_heads, -1)) for totals in z),  # (pos, head, d_head)
        mlp=tuple(replacement(totals) for totals in mlp),
        align=align,
    )


def find_rows(real: Tensor, align: Align, length: int) -> Tensor:
    """The row of a table of `length` positions for each token of padded prompts: (batch, pos) bool to int64."""
    from_end = real.shape[1] - 1 - torch.arange(real.shape[1])  # (pos,)
    from_start = (real.long().cumsum(dim=1) - 1).clamp(min=0)  # (batch, pos)
    return from_start if align == "left" else (length - 1 - from_end).expand(real.shape)


@contextmanager
def ablated(
    model: LanguageModel, circuit: Circuit, replacements: Replacements, *, mask: Tensor | None = None
) -> Iterator[None]:
    """Within the context, the Hugging Face model computes the circuit; the hooks are gone afterwards.

    `mask`, (batch, pos) bool, is that of the padded prompts that will be given.
    """
    family, hf = FAMILIES[model.family], model.hf
    n_layers, n_heads = family.n_layers(hf), family.n_heads(hf)
    circuit.check_fits(n_layers=n_layers, n_heads=n_heads)
    with ExitStack() as stack:
        for layer, block in enumerate(family.blocks(hf)):
            removed = sorted(set(range(n_heads)) - set(circuit.heads_of(layer)))
            if removed:
                hook = _head_hook(removed, replacements.z[layer], replacements.align, mask)
                handle = family.attention_output(block).register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            if layer not in circuit.mlps:
                hook = _mlp_hook(replacements.mlp[layer], replacements.align, mask)
                handle = family.mlp(block).register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


@torch.inference_mode()
def hooked_logits(
    model: LanguageModel,
    circuit: Circuit,
    replacements: Replacements,
    input_ids: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Logits of the circuit at every position: (batch, pos) int64 -> (batch, pos, vocab)."""
    with ablated(model, circuit, replacements, mask=mask):
        logits: Tensor = model.hf(**hf_inputs(input_ids, mask)).logits
    return logits


def _look_up(table: Tensor, like: Tensor, align: Align, mask: Tensor | None) -> Tensor:
    """A replacement, (pos or 1, ...), for each token of like, (batch, pos, ...): (batch or 1, pos or 1, ...)."""
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
