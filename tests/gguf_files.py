"""GGUF files of tiny random models, written as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

N_TOKENS = 40
_GPT2_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_gpt2(*, tied: bool = True) -> GPT2LMHeadModel:
    """A tiny GPT-2 whose sizes are none of the defaults."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_inner": 64, "n_positions": 16}
    config = GPT2Config(**shape, vocab_size=N_TOKENS, tie_word_embeddings=tied, layer_norm_epsilon=1e-3)
    return GPT2LMHeadModel(config).eval()


def make_llama(*, d_head: int = 8) -> LlamaForCausalLM:
    """A tiny Llama with grouped queries."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": d_head}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 16, "vocab_size": N_TOKENS}
    rotary: dict[str, Any] = {"rope_theta": 500.0}
    config = LlamaConfig(**shape, **sizes, tie_word_embeddings=True, rms_norm_eps=1e-3)
    if hasattr(config, "rope_theta"):
        config.rope_theta = 500.0
    else:
        config.rope_parameters = rotary | {"rope_type": "default"}
    return LlamaForCausalLM(config).eval()


def read_tensors(hf: Any) -> dict[str, np.ndarray]:
    """The tensors under GGUF's names and in its order of rows."""
    tensors = {}
    is_gpt2 = hf.config.model_type == "gpt2"
    names = _GPT2_NAMES if is_gpt2 else _LLAMA_NAMES
    outer = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "embed_tokens": "token_embd",
        "norm": "output_norm",
    }
    for name, tensor in hf.state_dict().items():
        value = tensor.detach().float().numpy()
        if name == "lm_head.weight":
            if not hf.config.tie_word_embeddings:
                tensors["output.weight"] = value
            continue
        path, kind = name.split(".", 1)[1].rsplit(".", 1)
        if path in outer:
            tensors[f"{outer[path]}.{kind}"] = value
            continue
        _, layer, module = path.split(".", 2)
        if is_gpt2 and kind == "weight" and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = hf.config.num_attention_heads if "q_proj" in module else hf.config.num_key_value_heads
            halves = value.reshape(heads, 2, -1, value.shape[1])  # (head, half, d_head / 2, d_model)
            value = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
        tensors[f"blk.{layer}.{names[module]}.{kind}"] = value
    return tensors


def read_settings(hf: Any) -> dict[str, Any]:
    """The settings that llama.cpp's converter writes."""
    config = hf.config
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        sizes |= {"feed_forward_length": config.n_inner, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    else:
        sizes |= {
            "feed_forward_length": config.intermediate_size,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": 500.0,
            "vocab_size": config.vocab_size,
        }
    settings = {f"{config.model_type}.{name}": value for name, value in sizes.items()}
    return settings | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*"abcdefghijklmnopqrstuvwxy", "ab", *(f"<{index}>" for index in range(26, N_TOKENS))],
        "tokenizer.ggml.token_type": [1 if index < 26 else 3 for index in range(N_TOKENS)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 30,
    }


def write_gguf(
    path: Path,
    hf: Any,
    *,
    architecture: str | None = None,
    settings: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    quantise: Callable[[str, np.ndarray], gguf.GGMLQuantizationType | None] = lambda name, value: None,
) -> Path:
    """Write a model's GGUF file; `settings` and `tensors` replace the model's own, None takes one out."""
    architecture = architecture or hf.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (read_settings(hf) | (settings or {})).items():
        _add_setting(writer, name, value)
    for name, tensor in (read_tensors(hf) | (tensors or {})).items():
        if tensor is None:
            continue
        kind = quantise(name, tensor)
        if kind is None:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_setting(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, value)
