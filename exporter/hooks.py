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

from exporter.circuit import Ablation, Circuit, Mean
from exporter.dataset import Dataset
from exporter.families import FAMILIES
from exporter.loading import LanguageModel
from exporter.means import CHUNK, Replacements


def record_replacements(model: LanguageModel, patching: Dataset, *, ablation: Ablation, mean: Mean) -> Replacements:
    """The replacements of every component, taken on the dense model by hooks (see `Replacements`)."""
    family, hf = FAMILIES[model.family], model.hf
    n_layers, n_heads = family.n_layers(hf), family.n_heads(hf)
    z: list[list[Tensor]] = [[] for _ in range(n_layers)]
    mlp: list[list[Tensor]] = [[] for _ in range(n_layers)]
    with ExitStack() as stack, torch.inference_mode():
        for layer in range(n_layers):
            read_z = family.attention_output(hf, layer).register_forward_pre_hook(
                lambda _module, args, seen=z[layer]: seen.append(args[0].double().sum(0))
            )
            read_mlp = family.mlp(hf, layer).register_forward_hook(
                lambda _module, _args, out, seen=mlp[layer]: seen.append(out.double().sum(0))
            )
            stack.callback(read_z.remove)
            stack.callback(read_mlp.remove)
        for input_ids in patching.input_ids.split(CHUNK):
            hf(input_ids, logits_to_keep=1, use_cache=False)

    def replacement(sums: list[Tensor]) -> Tensor:
        average = torch.stack(sums).sum(0) / len(patching)  # (pos, ...)
        if ablation == "zero":
            return torch.zeros_like(average[:1])
        return average if mean == "position" else average.mean(dim=0, keepdim=True)

    return Replacements(
        z=tuple(replacement(sums).unflatten(-1, (n_heads, -1)) for sums in z),  # (pos, head, d_head)
        mlp=tuple(replacement(sums) for sums in mlp),
    )


@contextmanager
def ablated(model: LanguageModel, circuit: Circuit, replacements: Replacements) -> Iterator[None]:
    """Within the context, the Hugging Face model computes the circuit; the hooks are gone afterwards."""
    family, hf = FAMILIES[model.family], model.hf
    n_layers, n_heads = family.n_layers(hf), family.n_heads(hf)
    circuit.check_fits(n_layers=n_layers, n_heads=n_heads)
    with ExitStack() as stack:
        for layer in range(n_layers):
            removed = sorted(set(range(n_heads)) - set(circuit.heads_of(layer)))
            if removed:
                hook = _head_hook(removed, replacements.z[layer].to(hf.dtype), n_heads)
                handle = family.attention_output(hf, layer).register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            if layer not in circuit.mlps:
                handle = family.mlp(hf, layer).register_forward_hook(_mlp_hook(replacements.mlp[layer].to(hf.dtype)))
                stack.callback(handle.remove)
        yield


@torch.inference_mode()
def hooked_logits(model: LanguageModel, circuit: Circuit, replacements: Replacements, input_ids: Tensor) -> Tensor:
    """Logits of the circuit at every position: (batch, pos) int64 -> (batch, pos, vocab)."""
    with ablated(model, circuit, replacements):
        logits: Tensor = model.hf(input_ids, use_cache=False).logits
    return logits


def _head_hook(removed: list[int], replacement: Tensor, n_heads: int) -> Any:
    def overwrite(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].unflatten(-1, (n_heads, -1)).clone()  # (batch, pos, head, d_head)
        z[:, :, removed] = replacement[:, removed]  # (pos or 1, removed, d_head)
        return (z.flatten(-2), *args[1:])  # (batch, pos, head * d_head)

    return overwrite


def _mlp_hook(replacement: Tensor) -> Any:
    def overwrite(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return replacement.expand_as(out)

    return overwrite
