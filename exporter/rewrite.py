"""Rebuild a dense model with only what a circuit keeps.

A removed component adds a constant, so its weights can go and the constant stays; a sublayer with
nothing left is a constant altogether. What remains is algebra that moves constants together and
folds fixed factors into the weights they multiply. Each pass below is exact in real arithmetic,
takes a CircuitModel, and returns a new one that shares what it did not change; sums and products
of weights are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from exporter.circuit import Circuit
from exporter.circuit_model import CircuitModel, HasDense
from exporter.dataset import Dataset
from exporter.means import compute_replacements
from exporter.slicing import add_constants, slice_model
from exporter.sublayers import MLP, Attention, Norm, Step, Sublayer

Tensors = dict[str, Tensor | None]


def rewrite_model(model: HasDense, circuit: Circuit, patching: Dataset) -> CircuitModel:
    """The circuit as a model of its own, means taken over the patching set; `model` is left as it is.

    Raises InputError when the circuit names components that the model lacks, or when prompts are
    longer than the model's positions.
    """
    replacements = compute_replacements(
        model.dense, patching, ablation=circuit.ablation, mean=circuit.mean, align=circuit.align
    )
    return fold_model(slice_model(model.dense, circuit, replacements))


def fold_model(model: CircuitModel) -> CircuitModel:
    """Every pass after slicing, in order; its weights lie as they are written, so that they compute alike when read."""
    for fold in FOLDS:
        model = fold(model)
    return _map_sublayers(model, lambda s: _rebuild(s, _pack(_tensors(s))))


def drop_empty_steps(model: CircuitModel) -> CircuitModel:
    """Merge the constant of a step without sublayers into the step before it, or into the position table.

    The first step stays, as a constant, where there is no table or the table counts from the other end.
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
        norm, tensors = sublayer.norm, _tensors(sublayer)
        pairs = (("W_Q", "b_Q"), ("W_K", "b_K"), ("W_V", "b_V"), ("W_in", "b_in"), ("W_gate", "b_gate"))
        for weight_name, bias_name in pairs:
            weight, bias = tensors.get(weight_name), tensors.get(bias_name)
            if weight is None:
                continue
            if norm.bias is not None:
                shift = norm.bias.double() @ weight.double()
                bias = (shift if bias is None else shift + bias.double()).to(weight.dtype)
            if norm.weight is not None:
                weight = (norm.weight.double()[:, None] * weight.double()).to(weight.dtype)
            tensors[weight_name], tensors[bias_name] = weight, bias
        return _rebuild(sublayer, tensors, norm=Norm(None, eps=norm.eps, rms=norm.rms))

    return _map_sublayers(model, fold)


def fold_scale(model: CircuitModel) -> CircuitModel:
    """Fold the attention scale, 1/sqrt(d_head), into W_Q and b_Q, or into the gain of the queries' norm."""

    def fold(sublayer: Sublayer) -> Sublayer:
        if not isinstance(sublayer, Attention):
            return sublayer
        tensors = _tensors(sublayer)
        for name in ("W_Q", "b_Q") if sublayer.q_norm is None else ("q_norm",):
            tensor = tensors[name]
            tensors[name] = None if tensor is None else (tensor.double() * sublayer.scale).to(tensor.dtype)
        return _rebuild(sublayer, tensors, scale=1.0)

    return _map_sublayers(model, fold)


def fold_attention_biases(model: CircuitModel) -> CircuitModel:
    """Drop b_K and move b_V into b_O.

    b_K adds q @ b_K to every score of a query, which softmax cancels, but where keys are rotated by position or
    normalised; attention weights sum to 1, so b_V adds b_V @ W_O whatever is attended to.
    """

    def fold(sublayer: Sublayer) -> Sublayer:
        if not isinstance(sublayer, Attention):
            return sublayer
        tensors = _tensors(sublayer)
        if model.rotary is None and sublayer.k_norm is None:
            tensors["b_K"] = None
        if sublayer.b_V is not None:
            b_V = sublayer.b_V.unflatten(0, (-1, sublayer.d_head))[sublayer.kv_places].flatten()  # (head * d_head,)
            through = b_V.double() @ sublayer.W_O.double()  # (d_model,)
            known = [through] if sublayer.b_O is None else [through, sublayer.b_O]
            tensors["b_V"], tensors["b_O"] = None, add_constants(known, sublayer.W_O.dtype)
        return _rebuild(sublayer, tensors)

    return _map_sublayers(model, fold)


def merge_constants(model: CircuitModel) -> CircuitModel:
    """One constant a step: a vector goes into an output bias, a table takes the output biases in."""
    steps = []
    for step in model.steps:
        constants = [c for c in (step.constant, *(s.out_bias for s in step.sublayers)) if c is not None]
        merged = add_constants(constants, model.W_E.dtype)
        is_vector = merged is not None and merged.ndim == 1 and len(step.sublayers) > 0
        first = merged if is_vector else None
        sublayers = [_with_out_bias(s, first if i == 0 else None) for i, s in enumerate(step.sublayers)]
        steps.append(Step(sublayers, merged if first is None else None))
    return model.replace(steps=steps)


FOLDS: tuple[Callable[[CircuitModel], CircuitModel], ...] = (
    drop_empty_steps,
    fold_norms,
    fold_scale,
    fold_attention_biases,
    merge_constants,
)


def _tensors(sublayer: Sublayer) -> Tensors:
    return {name: getattr(sublayer, name) for name in sublayer.tensor_names}


def _pack(tensors: Tensors) -> Tensors:
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}


def _rebuild(sublayer: Sublayer, tensors: Tensors, *, norm: Norm | None = None, scale: float | None = None) -> Sublayer:
    """The same sublayer with other tensors."""
    settings = sublayer.config() if scale is None else sublayer.config() | {"scale": scale}
    if isinstance(sublayer, Attention):
        return Attention(norm or sublayer.norm, tensors, **(settings | {"heads": sublayer.heads}))
    return MLP(norm or sublayer.norm, tensors, **settings)


def _with_out_bias(sublayer: Sublayer, bias: Tensor | None) -> Sublayer:
    name = "b_O" if isinstance(sublayer, Attention) else "b_out"
    return _rebuild(sublayer, {**_tensors(sublayer), name: bias})


def _map_sublayers(model: CircuitModel, change: Callable[[Sublayer], Sublayer]) -> CircuitModel:
    steps = [Step([change(sublayer) for sublayer in step.sublayers], step.constant) for step in model.steps]
    return model.replace(steps=steps)
