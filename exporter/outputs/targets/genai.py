"""genai_config.json, for onnxruntime-genai."""

from __future__ import annotations

from typing import Any

from exporter.files.names import GENAI, MODEL
from exporter.outputs.shape import BundleShape


def write_genai(shape: BundleShape) -> dict[str, str | dict[str, Any]]:
    """The file, where the model keeps a past and gives logits of all tokens."""
    if shape.form != "past" or shape.manifest.export.answer_ids:
        return {}
    return {GENAI: make_genai_config(shape)}


def make_genai_config(shape: BundleShape) -> dict[str, Any]:
    """What onnxruntime-genai reads; head counts by layer it takes from the ONNX file's own inputs."""
    config = shape.model.hf.config
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    presents = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL,
        "head_size": shape.d_head or 1,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": len(shape.kv_heads),
        "num_key_value_heads": max(shape.kv_heads, default=1),
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {"logits": "logits", **presents},
    }
    pad, first = shape.pad_id(), shape.keep_id(config.bos_token_id)
    model = {
        "type": "decoder",  # for any decoder with these inputs; "gpt2" would be an older layout
        "bos_token_id": pad if first is None else first,
        "eos_token_id": shape.stop_ids,
        "pad_token_id": pad,
        "context_length": shape.max_length,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": shape.max_length, "num_beams": 1, "past_present_share_buffer": False}
    return {"model": model, "search": search}
