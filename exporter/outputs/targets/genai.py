"""genai_config.json, for onnxruntime-genai."""

from __future__ import annotations

from typing import Any

from exporter.files.names import GENAI, MODEL
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.target import BundleTarget, Contents


def write_genai(shape: BundleShape) -> Contents:
    """The file, where the model keeps a past and gives logits of all tokens."""
    return {} if refuse_genai(shape) else {GENAI: make_genai_config(shape)}


def refuse_genai(shape: BundleShape) -> str | None:
    """It takes models that keep a past and give logits of all tokens."""
    if shape.manifest.export.logits not in ("all", "last"):
        return f"needs logits of the whole vocabulary; leave --logits {shape.manifest.export.logits} out"
    if shape.form != "past":
        return "needs keys and values of earlier calls; give --with-past"
    return None


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
        "inputs": {**{name: name for name in shape.inputs if "past" not in name}, **names},
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


_CARD = """\
With onnxruntime-genai (`genai_config.json`), prompts of a batch being of one length:

    import numpy, onnxruntime_genai, tokenizers
    model, tokenizer = onnxruntime_genai.Model("."), tokenizers.Tokenizer.from_file("tokenizer.json")
    generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
    generator.append_tokens(numpy.array([tokenizer.encode("a prompt").ids], numpy.int32))
    while not generator.is_done(): generator.generate_next_token()
    print(tokenizer.decode(list(generator.get_sequence(0))))

Its own `Tokenizer` begins no text with a special token, whatever the tokenizer's files say, and reads words that are
split at spaces as unknown; `tokenizer.json` has the one reading.
"""


def describe_genai(shape: BundleShape) -> str:
    """How to run it; the tokenizer is that of the bundle, not its own."""
    return "" if refuse_genai(shape) else _CARD


GENAI_TARGET = BundleTarget(write_genai, refuse=refuse_genai, describe=describe_genai)
