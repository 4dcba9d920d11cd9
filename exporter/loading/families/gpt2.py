"""GPT-2: LayerNorm, learned positions, fused QKV as Conv1D (weights transposed: (in, out)), tied unembedding.

The dense model's tensors are views of the Hugging Face model's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exporter.errors import InputError
from exporter.loading.families.family import Family, read_window, require_activation
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.norm import Norm
from exporter.network.step import Step


def check_config(config: Any) -> None:
    """Raise InputError for a GPT-2 configuration whose forward pass CircuitModel does not have."""
    require_activation(config.activation_function)
    read_window(config)
    if config.add_cross_attention:
        raise InputError("the model has cross-attention; only decoder-only models can be exported")


def build_steps(block: Any, layer: int, config: Any) -> list[Step]:
    """Attention, then the MLP."""
    return [Step([_attention(block, layer, config)]), Step([_mlp(block, layer, config)])]


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, eps=norm.eps)


def _attention(block: Any, layer: int, config: Any) -> Attention:
    attention = block.attn
    d_model, n_heads = config.n_embd, config.n_head
    scale = (d_model // n_heads) ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= layer + 1
    tensors: dict[str, Tensor | None] = {"W_O": attention.c_proj.weight, "b_O": attention.c_proj.bias}
    # c_attn is Q|K|V side by side
    for index, name in enumerate("QKV"):
        columns = slice(index * d_model, (index + 1) * d_model)
        tensors[f"W_{name}"] = attention.c_attn.weight[:, columns]  # (d_model, head * d_head)
        tensors[f"b_{name}"] = attention.c_attn.bias[columns]  # (head * d_head,)
    return Attention(_norm(block.ln_1), tensors, layer=layer, heads=tuple(range(n_heads)), scale=scale)


def _mlp(block: Any, layer: int, config: Any) -> FeedForward:
    mlp = block.mlp
    tensors: dict[str, Tensor | None] = {
        "W_in": mlp.c_fc.weight,
        "b_in": mlp.c_fc.bias,
        "W_out": mlp.c_proj.weight,
        "b_out": mlp.c_proj.bias,
    }
    return FeedForward(
        _norm(block.ln_2), tensors, layer=layer, activation=require_activation(config.activation_function)
    )


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    check_config=check_config,
    blocks=lambda hf: hf.transformer.h,
    build_steps=build_steps,
    final_norm=lambda hf: _norm(hf.transformer.ln_f),
    attention_output=lambda block: block.attn.c_proj,
    mlp=lambda block: block.mlp,
    mlp_output=lambda block: block.mlp.c_proj,
    W_pos=lambda hf: hf.transformer.wpe.weight,
    masks=("attn.bias", "attn.masked_bias"),
)
