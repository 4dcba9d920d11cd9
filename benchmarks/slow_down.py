"""Plant a slow-down: an extra MLP in an ONNX graph, which changes what the model costs but not what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def plant_mlp(path: str | Path, out: str | Path, width: int) -> None:
    """Copy a model, with an MLP of `width` hidden units between its embedding and what reads that.

    Its output is some 1e-9 of the residual: every answer stays. With d_model columns it costs 4 width d_model FLOPs
    a position, and reads 8 width d_model bytes.
    """
    model = onnx.load(path)
    graph, weights = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    index, embed = next(
        (i, node)
        for i, node in enumerate(graph.node)
        if node.op_type == "Gather" and node.input[0] in weights and len(weights[node.input[0]].dims) == 2
    )
    d_model, name = weights[embed.input[0]].dims[1], embed.output[0]
    embed.output[0] = f"{name}.before"
    rng = np.random.default_rng(0)
    for key, shape, scale in (("W_in", (d_model, width), 0.02), ("W_out", (width, d_model), 1e-10)):
        weight = (scale * rng.standard_normal(shape)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"planted.{key}"))
    planted = [
        helper.make_node("MatMul", [f"{name}.before", "planted.W_in"], ["planted.in"]),
        helper.make_node("Gelu", ["planted.in"], ["planted.gelu"], approximate="tanh"),
        helper.make_node("MatMul", ["planted.gelu", "planted.W_out"], ["planted.out"]),
        helper.make_node("Add", [f"{name}.before", "planted.out"], [name]),
    ]
    for offset, node in enumerate(planted, start=index + 1):
        graph.node.insert(offset, node)
    onnx.save(model, out)
