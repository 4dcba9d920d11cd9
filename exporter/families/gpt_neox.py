"""GPT-NeoX and Pythia: LayerNorm, partly rotary positions, attention and MLP in parallel on one residual.

query_key_value is fused head by head, (head, 3, d_head) rows of (out, in): Q, K and V are copies, the
rest are views of the Hugging Face model's tensors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exporter.families.family import Family, require_activation
from exporter.sublayers import MLP, Attention, Norm, Step


def check_config(config: Any) -> None:
    """Raise InputError for a configuration whose forward pass CircuitModel does not have."""
    require_activation(config.hidden_act)


def build_steps(block: Any, layer: int, config: Any) -> list[Step]:
    """Both sublayers in one step where they read the same residual."""
    attention, mlp = _attention(block, layer, config), _mlp(block, layer, config)
    return [Step([attention, mlp])] if config.use_parallel_residual else [Step([attention]), Step([mlp])]


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, eps=norm.eps)


def _attention(block: Any, layer: int, config: Any) -> Attention:
    attention, n_heads = block.attention, config.num_attention_heads
    fused = attention.query_key_value
    tensors: dict[str, Tensor | None] = {"W_O": attention.dense.weight.T, "b_O": attention.dense.bias}
    for place, name in enumerate("QKV"):
        weight = fused.weight.unflatten(0, (n_heads, 3, -1))[:, place]  # (head, d_head, d_model)
        tensors[f"W_{name}"] = weight.flatten(0, 1).T  # (d_model, head * d_head)
        if fused.bias is not None:
            tensors[f"b_{name}"] = fused.bias.unflatten(0, (n_heads, 3, -1))[:, place].flatten()  # (head * d_head,)
    scale = float(attention.scaling)
    return Attention(_norm(block.input_layernorm), tensors, layer=layer, heads=tuple(range(n_heads)), scale=scale)


def _mlp(block: Any, layer: int, config: Any) -> MLP:
    into, out = block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h
    tensors: dict[str, Tensor | None] = {
        "W_in": into.weight.T,
        "b_in": into.bias,
        "W_out": out.weight.T,
        "b_out": out.bias,
    }
    norm = _norm(block.post_attention_layernorm)
    return MLP(norm, tensors, layer=layer, activation=require_activation(config.hidden_act))


GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    check_config=check_config,
    blocks=lambda hf: hf.gpt_neox.layers,
    build_steps=build_steps,
    final_norm=lambda hf: _norm(hf.gpt_neox.final_layer_norm),
    attention_output=lambda block: block.attention.dense,
    mlp=lambda block: block.mlp,
    rotary=lambda hf: hf.gpt_neox.rotary_emb,
)
