"""StarCoder2: LayerNorm and a plain MLP, both with biases, around Llama's rotary grouped-query attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exporter.loading.families.family import Family, read_window, refuse_partial_rotary, require_activation
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.norm import Norm
from exporter.network.step import Step


def check_config(config: Any) -> None:
    """Raise InputError for a configuration whose forward pass CircuitModel does not have."""
    require_activation(config.hidden_act)
    read_window(config)
    refuse_partial_rotary(config)


def build_steps(block: Any, layer: int, config: Any) -> list[Step]:
    """Attention, then the MLP."""
    return [Step([_attention(block, layer, config)]), Step([_mlp(block, layer, config)])]


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, eps=norm.eps)


def _attention(block: Any, layer: int, config: Any) -> Attention:
    attention, n_heads = block.self_attn, config.num_attention_heads
    tensors: dict[str, Tensor | None] = {}
    for name in "QKVO":
        linear = getattr(attention, f"{name.lower()}_proj")
        tensors |= {f"W_{name}": linear.weight.T, f"b_{name}": linear.bias}
    return Attention(
        _norm(block.input_layernorm),
        tensors,
        layer=layer,
        heads=tuple(range(n_heads)),
        scale=float(attention.scaling),
        group=n_heads // config.num_key_value_heads,
    )


def _mlp(block: Any, layer: int, config: Any) -> FeedForward:
    into, out = block.mlp.c_fc, block.mlp.c_proj
    tensors: dict[str, Tensor | None] = {
        "W_in": into.weight.T,
        "b_in": into.bias,
        "W_out": out.weight.T,
        "b_out": out.bias,
    }
    norm = _norm(block.post_attention_layernorm)
    return FeedForward(norm, tensors, layer=layer, activation=require_activation(config.hidden_act))


STARCODER2 = Family(
    name="starcoder2",
    architecture="Starcoder2ForCausalLM",
    check_config=check_config,
    blocks=lambda hf: hf.model.layers,
    build_steps=build_steps,
    final_norm=lambda hf: _norm(hf.model.norm),
    attention_output=lambda block: block.self_attn.o_proj,
    mlp=lambda block: block.mlp,
    mlp_output=lambda block: block.mlp.c_proj,
    rotary=lambda hf: hf.model.rotary_emb,
)
