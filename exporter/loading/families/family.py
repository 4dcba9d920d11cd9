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

from exporter.errors import InputError
from exporter.loading.offload import is_offloaded, materialised
from exporter.network.attention import Attention
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.network.positions import Rotary
from exporter.network.step import Step, Sublayer

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

_LONGEST = 2**31  # a longer sliding_window is refused: transformers' masks overflow at 2^63
_WINDOWS_BY_LAYER = ("qwen2", "qwen3")  # in the other families every layer slides, whatever layer_types says


@dataclass(frozen=True)
class Family:
    """How one family's Hugging Face model maps to components, weights and hook points.

    `check_config` raises InputError for what CircuitModel cannot compute. `blocks(hf)` are the layers;
    `build_steps(block, layer, config)` gives one block's steps, each with tensors that share the block's
    storage. `W_pos(hf)` is the position table, `rotary(hf)` the rotary embedding: a family has one of them.
    `attention_output(block)` is the output projection: its input is z, (batch, pos, head * d_head).
    `mlp(block)` is the module whose output is the MLP's whole contribution, `mlp_output(block)` its down projection,
    whose input are the activated hidden units. `store(block, sublayer)` writes tensors that are copies of the block's
    back into it; where they are views there is nothing to do. `masks` are the names in a block of
    causal masks that older checkpoints store, and that are not weights.
    """

    name: str
    architecture: str
    check_config: Callable[[Any], None]
    blocks: Callable[[Any], Sequence[nn.Module]]
    build_steps: Callable[[Any, int, Any], list[Step]]
    final_norm: Callable[[Any], Norm]
    attention_output: Callable[[Any], nn.Module]
    mlp: Callable[[Any], nn.Module]
    mlp_output: Callable[[Any], nn.Module]
    W_pos: Callable[[Any], Tensor] | None = None
    rotary: Callable[[Any], nn.Module] | None = None
    store: Callable[[Any, Sublayer], None] = lambda _block, _sublayer: None
    masks: tuple[str, ...] = ()

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
                    Step(list(step.sublayers), load=partial(self._load_step, block, layer, hf.config, index))
                    for index, step in enumerate(built)
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

    def _load_step(self, block: Any, layer: int, config: Any, index: int) -> Step:
        """One step of an offloaded block, with its weights in memory."""
        with materialised(block):
            return self.build_steps(block, layer, config)[index]


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
    """The longest sequence for which positions and attention are what they are for short ones.

    A sliding window hides nothing up to its own length. Dynamic and long scalings of rotary embeddings change
    their frequencies beyond the length of training.
    """
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest, window = int(config.max_position_embeddings), read_window(config)
    longest = longest if window is None else min(longest, window)
    if scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope"):
        original = getattr(config, "original_max_position_embeddings", None)
        return min(longest, int(scaling.get("original_max_position_embeddings") or original or longest))
    return longest


def require_activation(name: str) -> str:
    """Our name of an activation; raises InputError for an unknown one."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r} in the model; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_window(config: Any) -> int | None:
    """The longest sequence that attention sees whole in every layer; None where there is no sliding window.

    A window of W counts the token itself, so that the last of W + 1 tokens does not see the first. Raises InputError
    for a window of no possible length, and for layers of another kind.
    """
    types, window = getattr(config, "layer_types", None) or [], getattr(config, "sliding_window", None)
    if not isinstance(types, list | tuple):
        raise InputError(f"layer_types is {types!r}; it must be a list with a word for each layer")
    if others := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
        raise InputError(f"the model has layers of type {others[0]!r}; known: full_attention, sliding_attention")
    if window is None:
        if "sliding_attention" in types:
            raise InputError("layer_types names sliding_attention, but there is no sliding_window; mend config.json")
        return None
    if config.model_type in _WINDOWS_BY_LAYER and "sliding_attention" not in types:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window < _LONGEST:
        raise InputError(f"sliding_window is {window!r}; it must be an integer from 1, or null for full attention")
    return window


def refuse_partial_rotary(config: Any) -> None:
    """Raise InputError for a share of each head that is rotated, where transformers' model rotates whole heads."""
    scaling = getattr(config, "rope_parameters", None) or {}
    share = scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if share not in (None, 1):
        raise InputError(
            f"partial_rotary_factor is {share!r}, and models of type {config.model_type} rotate whole heads; "
            "take it out of config.json"
        )
