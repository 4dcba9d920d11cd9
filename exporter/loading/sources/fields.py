"""Fields of config.json that a loader must not take as they are: those that say how to run, and those that lie.

transformers keeps every field it does not know, and acts on some: the kernel to compute with, the file that
holds the weights, heads to prune. Versions differ in which. Here they are dropped, judged or refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.errors import InputError
from exporter.loading.families import FAMILIES

# How to run, what to return, where the weights are: for the loader to say, whatever the file says.
_DROPPED = (
    *("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("_experts_implementation", "experts_implementation", "_flash_attn_2_enabled", "gradient_checkpointing"),
    *("transformers_weights", "dtype", "torch_dtype", "distributed_config", "fusion_config", "torchscript"),
    *("auto_map", "is_causal", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states"),
    *("problem_type", "num_labels", "id2label", "label2id", "_commit_hash", "_name_or_path"),
)
_QUANTIZED = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
_SWITCHES = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_parallel_residual", "use_sliding_window"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"),
)
_ROPE_SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What each kind of rotary scaling needs, by its name."""


def clean_fields(data: dict[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields to build a configuration from, and what a user should know. Raises InputError.

    For a model of a known type: code of the checkpoint's own is not needed then, and not run.
    """
    for name in _QUANTIZED:
        if data.get(name) is not None:
            settings = data[name] if isinstance(data[name], dict) else {}
            kind = settings.get("quant_method", "MLX" if name == "quantization" else name)
            raise InputError(
                f"{path}: the weights are quantized ({kind}); give the checkpoint that they were made from, in fp32, "
                "fp16 or bf16, or a GGUF file"
            )
    for name in _SWITCHES:
        if not isinstance(data.get(name, True), bool):
            raise InputError(f"{path}: {name} is {data[name]!r}; it must be true or false")
    if data.get("pruned_heads"):
        raise InputError(f"{path}: pruned_heads is set; give the checkpoint from before its heads were pruned")
    if data.get("is_causal", True) not in (True, None):
        raise InputError(
            f"{path}: is_causal is {data['is_causal']!r}; give a model that attends to earlier tokens only"
        )
    if FAMILIES[data["model_type"]].rotary is not None:
        _check_rotary(data, path)
    notes: tuple[str, ...] = ()
    if code := data.get("auto_map"):
        names = sorted(map(str, code.values() if isinstance(code, dict) else [code]))
        notes = (
            f"code of the checkpoint's own ({names[0][:60]}) is not run: transformers' {data['model_type']} computes",
        )
    return {name: value for name, value in data.items() if name not in (*_DROPPED, *_QUANTIZED)}, notes


def judge_padding(config: Any, path: Path) -> None:
    """Make a padding id of -1, which stands for none in many files, None. Raises InputError for one that is no id.

    A padding token is an index into the embedding.
    """
    pad = getattr(config, "pad_token_id", None)
    if pad is None:
        return
    if pad == -1:
        config.pad_token_id = None
    elif isinstance(pad, bool) or not isinstance(pad, int) or pad not in range(config.vocab_size):
        raise InputError(
            f"{path}: pad_token_id is {pad!r}, but the vocabulary has the ids 0 to {config.vocab_size - 1}; make it "
            "null, or one of them"
        )


def drop_strange_tokens(config: Any, vocab_size: int, path: Path) -> None:
    """Take out ids of first and last tokens beyond the vocabulary, which never come up. Raises InputError."""
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise InputError(f"{path}: {name} is {value!r}; it must be a token id, or null")
        kept = [token for token in ids if token in range(vocab_size)]
        if len(kept) < len(ids):
            setattr(config, name, (kept if len(kept) > 1 else kept[0]) if kept else None)


def _check_rotary(data: dict[str, Any], path: Path) -> None:
    """Raise InputError for rotary settings that the versions of transformers read differently, or not at all."""
    given = {name: data[name] for name in ("rope_scaling", "rope_parameters") if data.get(name)}
    for name, settings in given.items():
        if not isinstance(settings, dict):
            raise InputError(f"{path}: {name} is {settings!r}; it must be an object with a rope_type, or null")
        if layers := [key for key, value in settings.items() if isinstance(value, dict)]:
            raise InputError(f"{path}: {name} differs by layer ({layers[0]}), which models of this type do not have")
        _check_scaling(name, settings, path)
    kinds = {_kind(settings) for settings in given.values()}
    if len(kinds) > 1:
        raise InputError(f"{path}: rope_scaling and rope_parameters name different rope types; take one of them out")
    for settings in (data, *given.values()):
        theta = settings.get("rope_theta", 1.0)
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            raise InputError(f"{path}: rope_theta is {theta!r}; it must be a number")


def _kind(settings: dict[str, Any]) -> Any:
    return settings.get("rope_type", settings.get("type", "default"))


def _check_scaling(name: str, settings: dict[str, Any], path: Path) -> None:
    kind = _kind(settings)
    if not isinstance(kind, str) or kind not in _ROPE_SETTINGS:
        raise InputError(f"{path}: unknown rope_type {kind!r} in {name}; known: {', '.join(_ROPE_SETTINGS)}")
    if settings.get("type", kind) != kind:
        raise InputError(f"{path}: {name} has rope_type {kind!r} and type {settings['type']!r}; take the wrong one out")
    if "factor" in settings and not {"rope_type", "type"} & settings.keys():
        raise InputError(f"{path}: {name} has a factor and no rope_type; add one of {', '.join(_ROPE_SETTINGS)}")
    for field in _ROPE_SETTINGS[kind]:
        value = settings.get(field)
        numbers = value if field in ("short_factor", "long_factor") else [value]
        is_number = isinstance(numbers, list) and [
            isinstance(n, int | float) and not isinstance(n, bool) for n in numbers
        ]
        if not is_number or not all(is_number):
            what = "list of numbers" if numbers is value else "number"
            raise InputError(f"{path}: {name} of rope_type {kind!r} needs the {what} {field}, not {value!r}")
