"""Cut a model to the components that stay; what a removed one adds becomes a constant of its step.

A removed component's contribution does not depend on the prompt any more, so its weights can go and
the constant stays. This is all that changes a model's size; `rewrite` makes the rest smaller still.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.circuit import Circuit
from exporter.circuit_model import CircuitModel
from exporter.means import Replacements
from exporter.sublayers import Attention, Step, Sublayer


def slice_model(dense: CircuitModel, circuit: Circuit, replacements: Replacements) -> CircuitModel:
    """The dense model with only the circuit's components; `dense` is left as it is.

    W_Q, W_K, W_V and W_O keep the columns and rows of the heads that stay. A step whose sublayers are
    all gone stays as a constant. The parameters of what is returned are the circuit's size in the
    sense of DESIGN section 4. Raises InputError when the circuit names what the model lacks.
    """
    attentions = [s for s in dense.sublayers() if isinstance(s, Attention)]
    circuit.check_fits(n_layers=len(attentions), n_heads=len(attentions[0].heads))
    length = replacements.z[0].shape[0] if circuit.fixed_length else None
    steps = [slice_step(step.load(), circuit, replacements) for step in dense.steps]
    return dense.replace(steps=steps, length=length, align=replacements.align)


def slice_step(step: Step, circuit: Circuit, replacements: Replacements) -> Step:
    """One dense step with only the circuit's components, and the rest as its constant."""
    kept: list[Sublayer] = []
    constants: list[Tensor] = []
    for sublayer in step.sublayers:
        if isinstance(sublayer, Attention):
            heads = circuit.heads_of(sublayer.layer)
            constants += _removed_heads(sublayer, heads, replacements.z[sublayer.layer])
            kept += [_slice_attention(sublayer, heads)] if heads else []
        elif sublayer.layer in circuit.mlps:
            kept.append(sublayer)
        else:
            constants.append(replacements.mlp[sublayer.layer])
    like = next(step.parameters())
    return Step(kept, add_constants([c.to(like.device) for c in constants], like.dtype))


def add_constants(constants: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """The sum of constants, each (d_model,) or (pos or 1, d_model), added in float64; None where it is zero."""
    if not constants:
        return None
    total = torch.stack([c.double() for c in torch.broadcast_tensors(*constants)]).sum(0)
    if total.ndim == 2 and total.shape[0] == 1:
        total = total[0]  # (d_model,): the same at every position
    return total.to(dtype) if total.any() else None


def _removed_heads(attention: Attention, kept: tuple[int, ...], z: Tensor) -> list[Tensor]:
    """What the removed heads add, (pos or 1, d_model), and b_O where no head is left to carry it."""
    removed = [index for index in attention.heads if index not in kept]
    W_O = attention.W_O.double().unflatten(0, (len(attention.heads), -1))  # (head, d_head, d_model)
    constants = [torch.einsum("phd,hdm->pm", z[:, removed].to(W_O.device), W_O[removed])] if removed else []
    if not kept and attention.b_O is not None:
        constants.append(attention.b_O)
    return constants


def _slice_attention(attention: Attention, heads: tuple[int, ...]) -> Attention:
    """The attention sublayer of a dense model with some of its query heads only, and the keys and values they read."""
    if heads == attention.heads:
        return attention
    n_kv = len(attention.kv_heads)
    read = sorted({head // attention.group for head in heads})

    def columns(name: str, n_heads: int, index: Sequence[int]) -> Tensor | None:  # (..., head * d_head), cut
        tensor = getattr(attention, name)
        return None if tensor is None else tensor.unflatten(-1, (n_heads, -1))[..., list(index), :].flatten(-2)

    tensors = {name: columns(name, len(attention.heads), heads) for name in ("W_Q", "b_Q")}
    tensors |= {name: columns(name, n_kv, read) for name in ("W_K", "W_V", "b_K", "b_V")}
    W_O = attention.W_O.unflatten(0, (len(attention.heads), -1))[list(heads)].flatten(0, 1)  # (head * d_head, d_model)
    tensors |= {"W_O": W_O, "b_O": attention.b_O, "q_norm": attention.q_norm, "k_norm": attention.k_norm}
    settings = attention.config() | {"heads": heads}
    return Attention(attention.norm, tensors, **settings)
