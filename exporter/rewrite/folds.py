"""Passes after slicing: merge constants, and fold fixed factors into the weights that they multiply.

`slicing` has replaced removed components by constants. Each pass below is exact in real arithmetic, takes
a CircuitModel, and returns a new one that shares the tensors that it did not change; sums and products of
weights are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporter.network.attention import Attention
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.step import Step, Sublayer, map_attention
from exporter.rewrite.slicing import add_constants

Tensors = dict[str, Tensor | None]


def fold_model(model: CircuitModel) -> CircuitModel:
    """Apply all passes of `FOLDS` in order.

    Weights of the result are contiguous, as in a saved file: another memory layout can round differently.
    """
    model = model.replace(steps=[step.load() for step in model.steps])
    for fold in FOLDS:
        model = fold(model)
    return _map_sublayers(model, lambda s: s.rebuild(_pack(s.tensors)))


def drop_empty_steps(model: CircuitModel) -> CircuitModel:
    """Merge the constant of a step without sublayers into the step before it, or into W_pos; cut W_pos to `length`.

    An empty first step stays where the model has no W_pos, or where its constant is by position and aligned right,
    while W_pos counts from the left.
    """
    steps: list[Step] = []
    for step in model.steps:
        if len(step.sublayers) or not steps:
            steps.append(step)
        elif step.constant is not None:
            known = [c for c in (steps[-1].constant, step.constant) if c is not None]
            steps[-1] = Step(list(steps[-1].sublayers), add_constants(known, step.constant.dtype))
    W_pos = None if model.W_pos is None else model.W_pos[: model.length]
    first = steps[0] if steps else None
    if first is not None and not len(first.sublayers):
        by_position = first.constant is not None and first.constant.ndim == 2
        if first.constant is None:
            del steps[0]
        elif W_pos is not None and not (by_position and model.align == "right"):
            W_pos = (W_pos.double() + first.constant).to(W_pos.dtype)
            del steps[0]
    return model.replace(steps=steps, W_pos=W_pos)


def fold_norms(model: CircuitModel) -> CircuitModel:
    """Fold each norm's gain and bias into the projections that read it: (x g + b) W = x (g W) + b W."""

    def fold(sublayer: Sublayer) -> Sublayer:
        norm, tensors = sublayer.norm, sublayer.tensors
        for weight_name, bias_name in sublayer.inputs:
            weight, bias = tensors[weight_name], tensors[bias_name]
            if weight is None:
                continue
            if norm.bias is not None:
                shift = norm.bias.double() @ weight.double()
                bias = (shift if bias is None else shift + bias.double()).to(weight.dtype)
            if norm.weight is not None:
                weight = (norm.weight.double()[:, None] * weight.double()).to(weight.dtype)
            tensors[weight_name], tensors[bias_name] = weight, bias
        return sublayer.rebuild(tensors, norm=Norm(None, eps=norm.eps, rms=norm.rms))

    return _map_sublayers(model, fold)


def fold_scale(model: CircuitModel) -> CircuitModel:
    """Fold the attention scale, 1/sqrt(d_head), into W_Q and b_Q, or into the gain of the queries' norm."""

    def fold(attention: Attention) -> Attention:
        tensors = attention.tensors
        for name in ("W_Q", "b_Q") if attention.q_norm is None else ("q_norm",):
            tensor = tensors[name]
            tensors[name] = None if tensor is None else (tensor.double() * attention.scale).to(tensor.dtype)
        return attention.rebuild(tensors, scale=1.0)

    return _map_sublayers(model, lambda sublayer: map_attention(sublayer, fold))


def fold_attention_biases(model: CircuitModel) -> CircuitModel:
    """Drop b_K, unless keys are rotated by position or normalised, and move b_V into b_O.

    b_K adds the same q @ b_K to all scores of a query, which softmax cancels. Attention weights sum to 1, so b_V adds
    b_V @ W_O whatever is attended to.
    """

    def fold(attention: Attention) -> Attention:
        tensors, b_O = attention.tensors, attention.b_O
        if model.rotary is None and attention.k_norm is None:
            tensors["b_K"] = None
        if attention.b_V is not None:
            b_V = attention.b_V.unflatten(0, (-1, attention.d_head))[attention.kv_places].flatten()  # (head * d_head,)
            through = b_V.double() @ attention.W_O.double()  # (d_model,)
            biases = [through] if b_O is None else [through, b_O]
            tensors["b_V"], tensors["b_O"] = None, add_constants(biases, attention.W_O.dtype)
        return attention.rebuild(tensors)

    return _map_sublayers(model, lambda sublayer: map_attention(sublayer, fold))


def merge_constants(model: CircuitModel) -> CircuitModel:
    """Apply `merge_step` to every step: at most one constant or output bias is left in each."""
    return model.replace(steps=[merge_step(step, model.W_E.dtype) for step in model.steps])


def merge_step(step: Step, dtype: torch.dtype) -> Step:
    """The step with its constant and its output biases added up, in `dtype`.

    A sum of shape (d_model,) becomes the output bias of the first sublayer; a table by position, (pos, d_model), or any
    sum in a step without sublayers, becomes the step's constant.
    """
    constants = [c for c in (step.constant, *(s.out_bias for s in step.sublayers)) if c is not None]
    merged = add_constants(constants, dtype)
    is_vector = merged is not None and merged.ndim == 1 and len(step.sublayers) > 0
    first = merged if is_vector else None
    sublayers = [
        s.rebuild(s.tensors | {s.out_bias_name: first if i == 0 else None}) for i, s in enumerate(step.sublayers)
    ]
    return Step(sublayers, merged if first is None else None)


FOLDS: tuple[Callable[[CircuitModel], CircuitModel], ...] = (
    drop_empty_steps,
    fold_norms,
    fold_scale,
    fold_attention_biases,
    merge_constants,
)


def _pack(tensors: Tensors) -> Tensors:
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}


def _map_sublayers(model: CircuitModel, change: Callable[[Sublayer], Sublayer]) -> CircuitModel:
    steps = [Step([change(sublayer) for sublayer in step.sublayers], step.constant) for step in model.steps]
    return model.replace(steps=steps)
