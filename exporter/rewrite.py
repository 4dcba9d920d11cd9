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
    replacements = compute_replacements(model.dense, patching, ablation=circuit.ablation, mean=circuit.mean)
    return fold_model(slice_model(model.dense, circuit, replacements))


def fold_model(model: CircuitModel) -> CircuitModel:
    """Every pass after slicing, in order."""
    for fold in FOLDS:
        model = fold(model)
    return model


def drop_empty_steps(model: CircuitModel) -> CircuitModel:
    """Merge the constant of a step without sublayers into what comes before: a step, or the positions."""
    steps: list[Step] = []
    before_first: list[Tensor] = []
    for step in model.steps:
        if len(step.sublayers):
            steps.append(step)
        elif step.constant is not None:
            if steps:
                known = [c for c in (steps[-1].constant, step.constant) if c is not None]
                merged = add_constants(known, step.constant.dtype)
                steps[-1] = Step(list(steps[-1].sublayers), merged)
            else:
                before_first.append(step.constant)
    W_pos = model.W_pos[: model.length].double()  # (pos, d_model)
    for constant in before_first:
        W_pos = W_pos + constant
    return model.replace(steps=steps, W_pos=W_pos.to(model.W_pos.dtype))


def fold_norms(model: CircuitModel) -> CircuitModel:
    """Fold each norm's gain and bias into the projections that read it: (x g + b) W = x (g W) + b W."""

    def fold(sublayer: Sublayer) -> Sublayer:
        norm, tensors = sublayer.norm, _tensors(sublayer)
        pairs = (("W_Q", "b_Q"), ("W_K", "b_K"), ("W_V", "b_V")) if isinstance(sublayer, Attention) else MLP_INPUT
        for weight_name, bias_name in pairs:
            weight, bias = tensors[weight_name], tensors[bias_name]
            assert weight is not None
            if norm.bias is not None:
                shift = norm.bias.double() @ weight.double()
                bias = (shift if bias is None else shift + bias.double()).to(weight.dtype)
            if norm.weight is not None:
                weight = (norm.weight.double()[:, None] * weight.double()).to(weight.dtype)
            tensors[weight_name], tensors[bias_name] = weight, bias
        return _rebuild(sublayer, tensors, norm=Norm(None, None, eps=norm.eps))

    return _map_sublayers(model, fold)


def fold_scale(model: CircuitModel) -> CircuitModel:
    """Fold the attention scale, 1/sqrt(d_head), into W_Q and b_Q."""

    def fold(sublayer: Sublayer) -> Sublayer:
        if not isinstance(sublayer, Attention):
            return sublayer
        tensors = _tensors(sublayer)
        for name in ("W_Q", "b_Q"):
            tensor = tensors[name]
            tensors[name] = None if tensor is None else (tensor.double() * sublayer.scale).to(tensor.dtype)
        return _rebuild(sublayer, tensors, scale=1.0)

    return _map_sublayers(model, fold)


def fold_attention_biases(model: CircuitModel) -> CircuitModel:
    """Drop b_K and move b_V into b_O.

    b_K adds q @ b_K to every score of a query, which softmax cancels; attention weights sum to 1, so
    b_V adds b_V @ W_O whatever is attended to.
    """

    def fold(sublayer: Sublayer) -> Sublayer:
        if not isinstance(sublayer, Attention):
            return sublayer
        tensors = _tensors(sublayer)
        tensors["b_K"] = None
        if sublayer.b_V is not None:
            through = sublayer.b_V.double() @ sublayer.W_O.double()  # (d_model,)
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

MLP_INPUT = (("W_in", "b_in"),)


def _tensors(sublayer: Sublayer) -> Tensors:
    names = "W_Q W_K W_V W_O b_Q b_K b_V b_O" if isinstance(sublayer, Attention) else "W_in b_in W_out b_out"
    return {name: getattr(sublayer, name) for name in names.split()}


def _rebuild(sublayer: Sublayer, tensors: Tensors, *, norm: Norm | None = None, scale: float | None = None) -> Sublayer:
    """The same sublayer with other tensors."""
    norm = norm or sublayer.norm
    if isinstance(sublayer, Attention):
        scale = sublayer.scale if scale is None else scale
        return Attention(norm, tensors, layer=sublayer.layer, heads=sublayer.heads, scale=scale)
    return MLP(norm, tensors, layer=sublayer.layer, activation=sublayer.activation)


def _with_out_bias(sublayer: Sublayer, bias: Tensor | None) -> Sublayer:
    name = "b_O" if isinstance(sublayer, Attention) else "b_out"
    return _rebuild(sublayer, {**_tensors(sublayer), name: bias})


def _map_sublayers(model: CircuitModel, change: Callable[[Sublayer], Sublayer]) -> CircuitModel:
    steps = [Step([change(sublayer) for sublayer in step.sublayers], step.constant) for step in model.steps]
    return model.replace(steps=steps)
