"""What an adapter says about a family of models: its layout, declared and never guessed from shapes.

An adapter turns one block of the Hugging Face model (`hf` below) into steps and names the hook points;
it holds no forward pass. What all families share is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from exporter.circuit_model import CircuitModel
from exporter.errors import InputError
from exporter.offload import is_offloaded, materialised
from exporter.positions import Rotary
from exporter.sublayers import Attention, Norm, Step

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Activations by transformers' names."""


@dataclass(frozen=True)
class Family:
    """How one family's Hugging Face model maps to components, weights and hook points.

    `check_config` raises InputError for what CircuitModel cannot compute. `blocks(hf)` are the layers;
    `build_steps(block, layer, config)` gives one block's steps, each with tensors that share the block's
    storage. `W_pos(hf)` is the position table, `rotary(hf)` the rotary embedding: a family has one of them.
    `attention_output(block)` is the output projection: its input is z, (batch, pos, head * d_head).
    `mlp(block)` is the module whose output is the MLP's whole contribution.
    """

    name: str
    architecture: str
    check_config: Callable[[Any], None]
    blocks: Callable[[Any], Sequence[nn.Module]]
    build_steps: Callable[[Any, int, Any], list[Step]]
    final_norm: Callable[[Any], Norm]
    attention_output: Callable[[Any], nn.Module]
    mlp: Callable[[Any], nn.Module]
    W_pos: Callable[[Any], Tensor] | None = None
    rotary: Callable[[Any], nn.Module] | None = None

    def n_layers(self, hf: Any) -> int:
        """Layers of the model."""
        return len(self.blocks(hf))

    def n_heads(self, hf: Any) -> int:
        """Query heads of each layer."""
        return int(hf.config.num_attention_heads)

    def build_dense(self, hf: Any) -> CircuitModel:
        """The dense CircuitModel of a Hugging Face model, sharing its storage.

        Layers that are offloaded are brought into memory each time they are needed.
        """
        self.check_config(hf.config)
        W_E, W_U = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
        if W_E.is_meta or W_U.is_meta:
            raise InputError("embedding and unembedding cannot be offloaded; keep them on a device in the device map")
        steps: list[Step] = []
        for layer, block in enumerate(self.blocks(hf)):
            built = self.build_steps(block, layer, hf.config)
            if is_offloaded(block):
                built = [
                    Step(list(step.sublayers), load=partial(self._load_step, block, layer, hf.config, place))
                    for place, step in enumerate(built)
                ]
            steps += built
        return CircuitModel(
            steps,
            W_E=W_E,
            W_pos=None if self.W_pos is None else self.W_pos(hf),
            rotary=None if self.rotary is None else _build_rotary(self.rotary(hf), steps),
            final_norm=self.final_norm(hf),
            W_U=None if W_U.data_ptr() == W_E.data_ptr() else W_U,
            max_length=read_max_length(hf.config),
        )

    def _load_step(self, block: Any, layer: int, config: Any, place: int) -> Step:
        """One step of an offloaded block, with its weights in memory."""
        with materialised(block):
            return self.build_steps(block, layer, config)[place]


def _build_rotary(module: Any, steps: Sequence[Step]) -> Rotary:
    """From transformers' rotary embedding, which has worked its scaling into the frequencies already.

    Raises InputError for settings that give no frequencies, or more than a head has dimensions for.
    """
    rotary = Rotary(module.inv_freq, scale=float(module.attention_scaling))
    if not bool(rotary.inv_freq.isfinite().all()) or not math.isfinite(rotary.scale):
        raise InputError("the rotary embedding has no finite frequencies; mend rope_theta and factor in config.json")
    d_head = next(s.d_head for step in steps for s in step.sublayers if isinstance(s, Attention))
    if (n_rotary := 2 * len(rotary.inv_freq)) > d_head:
        raise InputError(f"the rotary embedding turns {n_rotary} dimensions of heads of {d_head}; mend config.json")
    return rotary


def read_max_length(config: Any) -> int:
    """The longest sequence for which the position embedding is what it is for short ones.

    Dynamic and long scalings of rotary embeddings change their frequencies beyond the length of training.
    """
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest = int(config.max_position_embeddings)
    if scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope"):
        original = getattr(config, "original_max_position_embeddings", None)
        return int(scaling.get("original_max_position_embeddings") or original or longest)
    return longest


def require_activation(name: str) -> str:
    """Our name of an activation; raises InputError for an unknown one."""
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r} in the model; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse_sliding_window(config: Any) -> None:
    """Raise InputError for attention that does not see the whole sequence."""
    types = getattr(config, "layer_types", None) or []
    if getattr(config, "sliding_window", None) is not None or "sliding_attention" in types:
        raise InputError(
            "the model has sliding-window attention, which is not supported; choose a model with full attention"
        )


def refuse_partial_rotary(config: Any) -> None:
    """Raise InputError for a share of each head that is rotated, where transformers' model rotates whole heads."""
    scaling = getattr(config, "rope_parameters", None) or {}
    share = scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if share not in (None, 1):
        raise InputError(
            f"partial_rotary_factor is {share!r}, and models of type {config.model_type} rotate whole heads; "
            "take it out of config.json"
        )
