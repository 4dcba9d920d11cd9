"""Llama and its relatives: RMSNorm, rotary positions, grouped-query attention, gated MLP.

Mistral and Qwen2 differ in biases, which the modules tell by themselves; Qwen3 normalises queries and
keys. Linear layers store weights as (out, in): ours are their transposed views.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, eps=norm.variance_epsilon, rms=True)


def _attention(block: Any, layer: int, config: Any) -> Attention:
    attention = block.self_attn
    projections = {"Q": attention.q_proj, "K": attention.k_proj, "V": attention.v_proj, "O": attention.o_proj}
    tensors: dict[str, Tensor | None] = {f"W_{name}": linear.weight.T for name, linear in projections.items()}
    tensors |= {f"b_{name}": linear.bias for name, linear in projections.items()}
    if hasattr(attention, "q_norm"):
        tensors |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
    n_heads = config.num_attention_heads
    return Attention(
        _norm(block.input_layernorm),
        tensors,
        layer=layer,
        heads=tuple(range(n_heads)),
        scale=float(attention.scaling),
        group=n_heads // config.num_key_value_heads,
    )


def _mlp(block: Any, layer: int, config: Any) -> FeedForward:
    mlp = block.mlp
    projections = {"in": mlp.up_proj, "gate": mlp.gate_proj, "out": mlp.down_proj}
    tensors: dict[str, Tensor | None] = {f"W_{name}": linear.weight.T for name, linear in projections.items()}
    tensors |= {f"b_{name}": linear.bias for name, linear in projections.items()}
    norm = _norm(block.post_attention_layernorm)
    return FeedForward(norm, tensors, layer=layer, activation=require_activation(config.hidden_act))


def _family(name: str, architecture: str) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        check_config=check_config,
        blocks=lambda hf: hf.model.layers,
        build_steps=build_steps,
        final_norm=lambda hf: _norm(hf.model.norm),
        attention_output=lambda block: block.self_attn.o_proj,
        mlp=lambda block: block.mlp,
        mlp_output=lambda block: block.mlp.down_proj,
        rotary=lambda hf: hf.model.rotary_emb,
    )


LLAMA = _family("llama", "LlamaForCausalLM")
MISTRAL = _family("mistral", "MistralForCausalLM")
QWEN2 = _family("qwen2", "Qwen2ForCausalLM")
QWEN3 = _family("qwen3", "Qwen3ForCausalLM")
