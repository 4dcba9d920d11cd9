"""A checkpoint's configuration, checked before a byte of its weights is believed.

transformers fills what it misses with defaults and keeps what it does not know; both change what the
model computes without a word. What we cannot compute is refused by name, with the reason.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError
from exporter.files import read_json as read_any_json
from exporter.loading.families import FAMILIES
from exporter.loading.sources.fields import clean_fields, drop_strange_tokens, judge_padding
from exporter.loading.sources.folders import explain_no_checkpoint
from exporter.loading.sources.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MIXTURE = "it is a mixture of experts: which weights compute depends on the token"
_WINDOW = "some of its layers attend within a sliding window"
_ENCODER = "it has an encoder, and its decoder attends to that"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("afmoe", "cohere2_moe", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1"),
            *("ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "granitemoe"),
            *("granitemoeshared", "hunyuan_v1_moe", "jetmoe", "lfm2_moe", "llama4", "llama4_text", "longcat_flash"),
            *("minimax", "minimax_m2", "mixtral", "nllb-moe", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
            *("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "solar_open", "switch_transformers"),
        ),
        _MIXTURE,
    ),
    "gpt_oss": f"{_MIXTURE}, and {_WINDOW}",
    **dict.fromkeys(
        (
            *("cohere2", "exaone4", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4"),
            *("gemma4_text", "gpt_neo", "granite_swa", "ministral", "modernbert-decoder", "olmo3", "vaultgemma"),
        ),
        _WINDOW,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5"),
            *("m2m_100", "marian", "mbart", "mt5", "mvp", "pegasus", "pegasus_x", "plbart", "prophetnet", "t5"),
            *("t5gemma", "udop", "umt5", "vision-encoder-decoder", "whisper"),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(("idefics", "mllama", "mllama_text_model"), "it has cross-attention to images"),
    **dict.fromkeys(
        (
            *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "mamba"),
            *("mamba2", "nemotron_h", "qwen3_5", "qwen3_5_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"),
        ),
        "it has recurrent layers in place of attention",
    ),
}
"""Why models of a type cannot be exported, by transformers' `model_type`."""

# Fields under the names that every configuration class answers to; the optional ones are checked where given.
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "intermediate_size")
_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")


def read_config(folder: Path) -> tuple[PreTrainedConfig, tuple[str, ...]]:
    """The configuration of a checkpoint folder, of a known family, and what a user should know of it.

    Raises InputError.
    """
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    if reason := explain_no_checkpoint(folder):
        raise InputError(reason)
    data = read_json(path)
    check_family(data.get("model_type"), data.get("architectures"), path, code=data.get("auto_map"))
    fields, notes = clean_fields(data, path)
    try:
        with quiet_transformers():
            config: PreTrainedConfig = CONFIG_MAPPING[data["model_type"]].from_dict(fields)
    except Exception as error:  # transformers raises its own, pydantic-like and plain errors alike
        raise InputError(f"{path} does not fit {data['model_type']}: {one_line(error)}") from error
    _adopt_rotary(config, data)
    check_config(config, path)
    return config, notes


def check_family(model_type: object, architectures: object, path: Path, *, code: object = None) -> None:
    """Raise InputError unless a model of this type and architecture is of a known family.

    `code` is what the checkpoint names of its own; a model that needs it is refused.
    """
    if isinstance(model_type, str) and model_type in REFUSED and model_type not in FAMILIES:
        raise InputError(
            f"{path}: models of type {model_type} cannot be exported: {REFUSED[model_type]}; "
            f"choose one of {', '.join(FAMILIES)}"
        )
    known = ", ".join(f"{name} ({family.architecture})" for name, family in FAMILIES.items())
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = "; its own code (auto_map) is never run" if code else ""
        raise InputError(f"{path}: unknown model_type {model_type!r}{why}; known: {known}")
    named = architectures if isinstance(architectures, list) else [architectures]
    if architectures and FAMILIES[model_type].architecture not in named:
        raise InputError(f"{path}: architecture {architectures} is no language model that is known; known: {known}")


def check_config(config: Any, path: Path) -> None:
    """Raise InputError for sizes that no model has and for what the family's adapter cannot compute."""
    optional = tuple(field for field in _OPTIONAL_SIZES if getattr(config, field, None) is not None)
    for field in (*_SIZES, *optional):
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {field} is {value!r}; it must be an integer from 1")
    heads = config.num_attention_heads
    if "head_dim" not in optional and config.hidden_size % heads:
        raise InputError(f"{path}: {heads} heads do not divide d_model {config.hidden_size}; mend config.json")
    if "num_key_value_heads" in optional and heads % config.num_key_value_heads:
        raise InputError(
            f"{path}: {config.num_key_value_heads} key-value heads do not divide {heads} heads; mend config.json"
        )
    for field in _EPSILONS:
        epsilon = getattr(config, field, 1e-5)
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
            raise InputError(f"{path}: {field} is {epsilon!r}; it must be a number above 0")
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{path}: the model cannot be exported: {_ENCODER}; choose a decoder-only model")
    judge_padding(config, path)
    drop_strange_tokens(config, config.vocab_size, path)
    FAMILIES[config.model_type].check_config(config)


def _adopt_rotary(config: Any, data: dict[str, Any]) -> None:
    """Give an older transformers the rotary settings that a newer one has saved under its own name.

    transformers 4 does not know `rope_parameters` and would take the default base frequency.
    """
    saved = data.get("rope_parameters")
    if not isinstance(saved, dict) or not hasattr(config, "rope_theta") or "rope_theta" in data:
        return
    if "rope_theta" in saved:
        config.rope_theta = config.rotary_emb_base = saved["rope_theta"]
    if saved.get("rope_type", "default") != "default":
        config.rope_scaling = {name: value for name, value in saved.items() if name != "rope_theta"}
    if "original_max_position_embeddings" in saved:
        config.original_max_position_embeddings = saved["original_max_position_embeddings"]
    if "partial_rotary_factor" in saved:
        config.partial_rotary_factor = config.rotary_pct = saved["partial_rotary_factor"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises InputError."""
    try:
        data = read_any_json(path)
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}; give a checkpoint saved with save_pretrained") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({one_line(error)}); get the checkpoint again") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a JSON object, not {type(data).__name__}; get the checkpoint again")
    return data


def refuse_code(data: dict[str, Any], path: Path) -> None:
    """Raise InputError where a tokenizer asks for code of its own to be run; null asks for none."""
    if data.get("auto_map"):
        raise InputError(f"{path} names code of its own (auto_map), which is never run; give a plain checkpoint")


def one_line(error: Exception) -> str:
    """An error of a library, short enough for a message of ours."""
    return " ".join(str(error).split())[:140] or type(error).__name__
