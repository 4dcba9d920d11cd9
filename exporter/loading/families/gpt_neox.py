"""GPT-NeoX and Pythia: LayerNorm, partly rotary positions, attention and MLP in parallel on one residual.

query_key_value is fused head by head, (head, 3, d_head) rows of (out, in): Q, K and V are copies, the
rest are views of the Hugging Face model's tensors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exporter.loading.families.family import Family, read_window, require_activation
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.norm import Norm
from exporter.network.step import Step, Sublayer


def check_config(config: Any) -> None:
    """Raise InputError for a configuration whose forward pass CircuitModel does not have."""
    require_activation(config.hidden_act)
    read_window(config)


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
    for index, name in enumerate("QKV"):
        weight = fused.weight.unflatten(0, (n_heads, 3, -1))[:, index]  # (head, d_head, d_model)
        tensors[f"W_{name}"] = weight.flatten(0, 1).T  # (d_model, head * d_head)
        if fused.bias is not None:
            tensors[f"b_{name}"] = fused.bias.unflatten(0, (n_heads, 3, -1))[:, index].flatten()  # (head * d_head,)
    scale = float(attention.scaling)
    return Attention(_norm(block.input_layernorm), tensors, layer=layer, heads=tuple(range(n_heads)), scale=scale)


def store(block: Any, sublayer: Sublayer) -> None:
    """Write queries, keys and values back, which are copies (of a single head, views: hence the clones)."""
    fused = block.attention.query_key_value
    for place, name in enumerate("QKV"):
        if (weight := sublayer.tensors.get(f"W_{name}")) is None:
            continue  # an MLP, of which all is views
        rows = fused.weight.unflatten(0, (-1, 3, block.attention.head_size))[:, place]  # (head, d_head, d_model)
        rows.copy_(weight.T.clone().unflatten(0, rows.shape[:2]))
        if (bias := sublayer.tensors[f"b_{name}"]) is not None:
            rows = fused.bias.unflatten(0, (-1, 3, block.attention.head_size))[:, place]
            rows.copy_(bias.clone().unflatten(0, rows.shape))


def _mlp(block: Any, layer: int, config: Any) -> FeedForward:
    into, out = block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h
    tensors: dict[str, Tensor | None] = {
        "W_in": into.weight.T,
        "b_in": into.bias,
        "W_out": out.weight.T,
        "b_out": out.bias,
    }
    norm = _norm(block.post_attention_layernorm)
    return FeedForward(norm, tensors, layer=layer, activation=require_activation(config.hidden_act))


GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    check_config=check_config,
    blocks=lambda hf: hf.gpt_neox.layers,
    build_steps=build_steps,
    final_norm=lambda hf: _norm(hf.gpt_neox.final_layer_norm),
    attention_output=lambda block: block.attention.dense,
    mlp=lambda block: block.mlp,
    mlp_output=lambda block: block.mlp.dense_4h_to_h,
    rotary=lambda hf: hf.gpt_neox.rotary_emb,
    store=store,
    masks=("attention.bias", "attention.masked_bias"),
)
