"""The hook points of TransformerLens at which a circuit's components are read and replaced."""

from __future__ import annotations

from typing import Any

from exporter.circuit.circuit import Circuit


def list_hooks(circuit: Circuit) -> dict[str, dict[str, Any]]:
    """By component that stays: the hook point of its activation, and its index on the axis of heads or hidden units.

    A head's is `hook_z`, (batch, pos, head, d_head), the values that its attention mixes, before W_O. An MLP's is its
    output, (batch, pos, d_model), bias included. A hidden unit's is `hook_post`, (batch, pos, d_mlp), in a gated MLP
    after the product with the gate.
    """
    hooks: dict[str, dict[str, Any]] = {
        str(head): {"hook": f"blocks.{head.layer}.attn.hook_z", "index": head.index} for head in circuit.heads
    }
    hooks |= {f"m{layer}": {"hook": f"blocks.{layer}.hook_mlp_out"} for layer in circuit.mlps}
    for layer, units in circuit.neurons:
        hooks |= {f"m{layer}.n{unit}": {"hook": f"blocks.{layer}.mlp.hook_post", "index": unit} for unit in units}
    return hooks
