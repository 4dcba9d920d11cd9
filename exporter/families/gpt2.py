"""GPT-2: how its Hugging Face model maps to components, weights and hook points.

LayerNorm, learned positions, fused QKV as Conv1D (weights transposed: (in, out)), tied unembedding.
The dense `CircuitModel` shares the Hugging Face model's storage: its tensors are views.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.families.family import Family
from exporter.sublayers import MLP, Attention, Norm, Step, Sublayer

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def check_config(config: Any) -> None:
    """Raise InputError for a GPT-2 configuration whose forward pass CircuitModel does not have."""
    if config.activation_function not in _ACTIVATIONS:
        raise InputError(
            f"unknown activation {config.activation_function!r} in the model; known: {', '.join(_ACTIVATIONS)}"
        )
    if config.add_cross_attention:
        raise InputError("the model has cross-attention; only decoder-only models can be exported")


def build_dense(hf: Any) -> CircuitModel:
    """The dense CircuitModel of a GPT2LMHeadModel, sharing its storage."""
    check_config(hf.config)
    body = hf.transformer
    steps = []
    for layer, block in enumerate(body.h):
        steps.append(Step([_attention(block, layer, hf.config)]))
        steps.append(Step([_mlp(block, layer, hf.config)]))
    tied = hf.lm_head.weight.data_ptr() == body.wte.weight.data_ptr()
    return CircuitModel(
        steps,
        W_E=body.wte.weight,
        W_pos=body.wpe.weight,
        final_norm=_norm(body.ln_f),
        W_U=None if tied else hf.lm_head.weight,
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, eps=norm.eps)


def _attention(block: Any, layer: int, config: Any) -> Sublayer:
    attention = block.attn
    d_model, n_heads = config.n_embd, config.n_head
    scale = (d_model // n_heads) ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= layer + 1
    tensors: dict[str, Tensor | None] = {"W_O": attention.c_proj.weight, "b_O": attention.c_proj.bias}
    # c_attn is Q|K|V side by side
    for place, name in enumerate("QKV"):
        columns = slice(place * d_model, (place + 1) * d_model)
        tensors[f"W_{name}"] = attention.c_attn.weight[:, columns]  # (d_model, head * d_head)
        tensors[f"b_{name}"] = attention.c_attn.bias[columns]  # (head * d_head,)
    return Attention(_norm(block.ln_1), tensors, layer=layer, heads=tuple(range(n_heads)), scale=scale)


def _mlp(block: Any, layer: int, config: Any) -> Sublayer:
    mlp = block.mlp
    tensors: dict[str, Tensor | None] = {
        "W_in": mlp.c_fc.weight,
        "b_in": mlp.c_fc.bias,
        "W_out": mlp.c_proj.weight,
        "b_out": mlp.c_proj.bias,
    }
    return MLP(_norm(block.ln_2), tensors, layer=layer, activation=_ACTIVATIONS[config.activation_function])


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    check_config=check_config,
    build_dense=build_dense,
    n_layers=lambda hf: hf.config.n_layer,
    n_heads=lambda hf: hf.config.n_head,
    attention_output=lambda hf, layer: hf.transformer.h[layer].attn.c_proj,
    mlp=lambda hf, layer: hf.transformer.h[layer].mlp,
)
