"""A model's twin: the same graph and shapes from a few kilobytes, with other numbers in its weights."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import make_model

from exporter.bench.proxies import count_proxies
from exporter.bench.twin import strip_weights, write_twin
from exporter.bench.workload import BoundModel, choose_workload
from exporter.errors import InputError
from exporter.graph.export import export_onnx
from exporter.graph.options import Form, GraphOptions


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_a_twin_costs_the_same_and_says_something_else(form: Form, tmp_path: Path) -> None:
    export_onnx(make_model("llama", n_heads=4, d_head=8).dense, tmp_path / "m.onnx", GraphOptions(form=form))
    text = strip_weights(tmp_path / "m.onnx")
    write_twin(text, tmp_path / "twin.onnx")
    model, twin = BoundModel(tmp_path / "m.onnx"), BoundModel(tmp_path / "twin.onnx")
    workload = choose_workload([model, twin], length=5)
    shapes = {name: array.shape for name, array in model.make_feeds(workload).items()}
    before, after = (count_proxies(path, shapes) for path in (tmp_path / "m.onnx", tmp_path / "twin.onnx"))
    assert (before.flops, before.nodes, before.weight_bytes) == (after.flops, after.nodes, after.weight_bytes)
    assert before.flops
    ours, theirs = (bound.bind(workload).outputs()["logits"] for bound in (model, twin))
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    assert not np.allclose(ours, theirs)
    assert len(text) < (tmp_path / "m.onnx").stat().st_size / 3
    assert strip_weights(tmp_path / "twin.onnx") == text


def test_each_kind_of_number(tmp_path: Path) -> None:
    """Small constants stay, indices become zeros, which every table has, and the rest is random."""
    arrays = {
        "mask": np.full(121, -np.inf, np.float32),
        "weight": np.full(300, 7, np.float32),
        "half": np.full(300, 7, np.float16),
        "int8": np.full(300, 7, np.int8),
        "uint8": np.full(300, 7, np.uint8),
        "index": np.full(300, 7, np.int64),
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", ["mask"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [121])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    twin = onnx.load(write_twin(strip_weights(tmp_path / "m.onnx"), tmp_path / "twin.onnx"))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in twin.graph.initializer}
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in arrays.items()
    }
    assert (found["mask"] == arrays["mask"]).all()
    assert (found["index"] == 0).all()
    for name in ("weight", "half", "int8", "uint8"):
        assert len(np.unique(found[name])) > 30, name
    assert 0.015 < found["weight"].std() < 0.025


@pytest.mark.parametrize("text", ["", "no base64!", base64.b64encode(b"no zlib").decode()])
def test_damaged_text_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the graph in the baseline is damaged"):
        write_twin(text, tmp_path / "m.onnx")
    nonsense = base64.b64encode(zlib.compress(b"nonsense")).decode()
    with pytest.raises(InputError, match="the graph in the baseline is damaged"):
        write_twin(nonsense, tmp_path / "m.onnx")
