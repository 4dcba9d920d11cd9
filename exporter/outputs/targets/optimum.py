"""config.json and generation_config.json, as Optimum and transformers read them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.files.names import CONFIG, GENERATION
from exporter.loading.sources.quiet import quiet_transformers
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.target import BundleTarget, Contents


def write_optimum(shape: BundleShape) -> Contents:
    """Both files."""
    return {CONFIG: make_config(shape), GENERATION: make_generation_config(shape)}


def make_config(shape: BundleShape) -> dict[str, Any]:
    """config.json: the dense model's, with what differs; `export_circuit` holds what it was."""
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as scratch, quiet_transformers():
        shape.model.hf.config.save_pretrained(scratch)  # as the installed transformers writes it
        data: dict[str, Any] = json.loads((Path(scratch) / "config.json").read_text(encoding="utf-8"))
    data |= {name: shape.keep_ids(token) for name, token in data.items() if name.endswith("_token_id")}
    changes: dict[str, Any] = {
        "n_positions" if "n_positions" in data else "max_position_embeddings": shape.max_length,
        "use_cache": bool(shape.kv_heads),
        "architectures": [name_architecture(shape)],
        **name_classes(shape.manifest.export.labels),
        "torch_dtype" if "torch_dtype" in data else "dtype": "float32",
        **_change_cache(shape, data),
    }
    dense = {key: data.get(key) for key, value in changes.items() if data.get(key) != value}
    circuit = shape.manifest.get_circuit()
    ours: dict[str, Any] = {
        "form": shape.form,
        "heads": [[h.layer, h.index] for h in circuit.heads],
        "mlps": list(circuit.mlps),
    }
    ours |= {"neurons": {str(layer): list(units) for layer, units in circuit.neurons}} if circuit.neurons else {}
    return {**data, **changes, "export_circuit": {**ours, "dense": dense}}


def name_architecture(shape: BundleShape) -> str:
    """The class of transformers that has these outputs: the dense model's, or its family's sequence classifier."""
    causal = type(shape.model.hf).__name__
    if not shape.manifest.export.labels:
        return causal
    family = causal.removesuffix("LMHeadModel").removesuffix("ForCausalLM")
    return f"{family}ForSequenceClassification"


def name_classes(labels: Sequence[str]) -> dict[str, Any]:
    """What says which logit is which class; nothing of a language model."""
    if not labels:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _change_cache(shape: BundleShape, data: dict[str, Any]) -> dict[str, Any]:
    """Optimum makes the empty past of every layer from these; they can be right only where layers are alike."""
    if len(set(shape.kv_heads)) != 1 or shape.d_head is None:
        return {}
    n_kv, d_head = shape.kv_heads[0], shape.d_head
    heads, width = ("n_head", "n_embd") if "n_head" in data else ("num_attention_heads", "hidden_size")
    grouped = {"num_key_value_heads": n_kv} if "num_key_value_heads" in data else {}
    return {heads: n_kv, width: n_kv * d_head, **grouped}  # which of the two it reads depends on the family


def make_generation_config(shape: BundleShape) -> dict[str, Any]:
    """Greedy, and no longer than the model knows: one token follows the longest text that it computes."""
    config = shape.model.hf.config
    stop = shape.stop_ids
    return {
        "bos_token_id": shape.keep_id(config.bos_token_id),
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
        "pad_token_id": shape.pad_id(),
        "do_sample": False,
        "max_length": shape.max_length + 1,
        "use_cache": bool(shape.kv_heads),
    }


_SEQUENCE_CLASSIFIER = """\
With Optimum and transformers' own pipeline:

    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline
    model = ORTModelForSequenceClassification.from_pretrained(".")
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained("."))
    print(classify(text))
"""


def refuse_optimum(shape: BundleShape) -> str | None:
    """It takes logits of all tokens, or of classes; and a past only where all layers keep one of as many heads."""
    export = shape.manifest.export
    if export.answer_ids and not export.labels:
        return "takes each logit for the token of its number; leave --logits answers out, or give --logits classes"
    if len(set(shape.kv_heads)) > 1:
        counts = ", ".join(map(str, shape.kv_heads))
        return f"makes the past of every layer alike, and these have {counts} heads; give --for optimum"
    return None


def describe_optimum(shape: BundleShape) -> str:
    """How to open it, or why it cannot be."""
    if shape.manifest.export.labels:
        return _SEQUENCE_CLASSIFIER
    if reason := refuse_optimum(shape):
        return f"Optimum cannot generate with it: it {reason}."
    use_cache = bool(shape.kv_heads)  # Optimum takes it from the call alone, whatever the files say
    asked = "" if use_cache else ", use_cache=False"
    length = "; it generates one token." if shape.pinned else "."
    legacy = (
        ""
        if "position_ids" in shape.inputs
        else " It speaks of a legacy model, because the graph counts positions by the mask, and takes no "
        "`position_ids`; no answer changes."
    )
    return f"With Optimum: `ORTModelForCausalLM.from_pretrained(folder{asked})`{length}{legacy}"


OPTIMUM = BundleTarget(write_optimum, refuse=refuse_optimum, describe=describe_optimum)
