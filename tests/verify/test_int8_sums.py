"""Sums of int8 products: which stored weights are exact on which processors, by emulation and by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from int8_sums import Array, sum_in_pairs, sum_wide
from onnx import TensorProto, helper, numpy_helper
from tiny import make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.graph.export import export_onnx, read_metadata
from exporter.graph.int8 import EVERYWHERE, STORED
from exporter.graph.metadata import PROCESSORS_KEY
from exporter.graph.nodes import NodeAuthor
from exporter.graph.options import GraphOptions, WeightType
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime import session as sessions
from exporter.runtime.session import has_int8_sums, import_onnxruntime, open_session

SAFE = [name for name, stored in STORED.items() if stored.processors == EVERYWHERE]


def store(weight: torch.Tensor, weight_type: WeightType) -> Array:
    """A weight as the graph has it, in 8 bits."""
    author = NodeAuthor(GraphOptions(precision="int8", weight_type=weight_type))
    value, zero = author._weight_int8(weight, "w")
    assert (0 if zero is None else 128) == STORED[weight_type].zero
    assert value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize("weight_type", STORED)
def test_the_largest_products_fit_where_a_form_is_said_to_be_exact(weight_type: WeightType) -> None:
    """By hand: two neighbours of 255 times the largest weight, 255 * 127 * 2 = 64,770 against 255 * 64 * 2 = 32,640."""
    weight, stored = torch.ones(2, 1), STORED[weight_type]
    x = np.full((1, 2), 255, np.uint8)
    weights = store(weight, weight_type)
    assert weights.flatten().tolist() == [stored.largest + stored.zero] * 2
    assert sum_wide(x, 0, weights, stored.zero) == 255 * stored.largest * 2
    expected = {"uint8": 64_770, "int7": 32_640, "int8": 32_767}
    assert sum_in_pairs(x, 0, weights, stored.zero) == expected[weight_type]


@given(data=st.data())
def test_forms_that_are_exact_everywhere_give_the_same_sums_on_both_kinds_of_processor(data: st.DataObject) -> None:
    """Any weights, those at the ends of their range among them; any activations and zero point."""
    n_in, n_out, rows = (data.draw(st.integers(1, most)) for most in (33, 4, 3))
    weight_type = data.draw(st.sampled_from(SAFE))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weight = torch.from_numpy(rng.choice([-1.0, 1.0, rng.normal(), 0.0], (n_in, n_out)).astype(np.float32))
    x = rng.choice([0, 255, rng.integers(256)], (rows, n_in)).astype(np.uint8)
    weights, zero, x_zero = store(weight, weight_type), STORED[weight_type].zero, data.draw(st.integers(0, 255))
    assert np.array_equal(sum_in_pairs(x, x_zero, weights, zero), sum_wide(x, x_zero, weights, zero))


def test_8_bits_of_signed_weights_differ_between_processors() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.integers(0, 256, (4, 64), np.uint8), store(torch.from_numpy(rng.normal(size=(64, 8))), "int8")
    assert not np.array_equal(sum_in_pairs(x, 128, weights, 0), sum_wide(x, 128, weights, 0))


def watch(path: Path, prompts: Array) -> list[tuple[Array, int, Array, int, Array]]:
    """Of each product of an int8 file: x, its zero point, the weights, theirs, and the sums that ONNX Runtime gives."""
    proto = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    watched = dict.fromkeys(name for node in products for name in (node.input[0], node.input[2], node.output[0]))
    watched = {name: None for name in watched if name not in constants}
    kinds = dict.fromkeys(watched, TensorProto.UINT8) | {node.output[0]: TensorProto.INT32 for node in products}
    proto.graph.output.extend(helper.make_tensor_value_info(name, kinds[name], None) for name in watched)
    options = import_onnxruntime().SessionOptions()
    session = import_onnxruntime().InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = dict(zip(watched, session.run(list(watched), {"input_ids": prompts}), strict=True)) | constants
    return [
        (found[node.input[0]], int(found[node.input[2]]), found[node.input[1]],
         int(found[node.input[3]]) if len(node.input) > 3 else 0, found[node.output[0]])
        for node in products
    ]  # fmt: skip


@pytest.mark.parametrize("scales", ["tensor", "token"])
@pytest.mark.parametrize("weight_type", STORED)
def test_onnx_runtime_gives_these_sums_bit_by_bit(weight_type: WeightType, scales: Any, tmp_path: Path) -> None:
    """Every product of a whole graph, on prompts: exact in the safe forms, and in the other as this processor adds."""
    circuit = Circuit((Head(0, 1), Head(1, 0), Head(1, 1)), (0, 1), Ablation(by="global"))
    model = rewrite_model(make_model(d_head=33, d_mlp=65), circuit, make_prompts(8, 6))
    options = GraphOptions(logits="last", precision="int8", scales=scales, weight_type=weight_type)
    export_onnx(model, tmp_path / "m.onnx", options)
    products = watch(tmp_path / "m.onnx", make_prompts(5, 6, seed=1).input_ids.numpy())
    assert len(products) >= 8
    is_wide = weight_type in SAFE or has_int8_sums()
    differs = False
    for x, x_zero, weights, zero, sums in products:
        rows = x.reshape(-1, x.shape[-1])
        wide, pairs = (add(rows, x_zero, weights, zero).reshape(sums.shape) for add in (sum_wide, sum_in_pairs))
        assert np.array_equal(sums, wide if is_wide else pairs)
        differs |= not np.array_equal(wide, pairs)
    assert differs == (weight_type not in SAFE)


@pytest.mark.parametrize("weight_type", STORED)
def test_a_file_says_where_it_is_exact_and_is_not_run_elsewhere(
    weight_type: WeightType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(make_model().dense, tmp_path / "m.onnx", GraphOptions(precision="int8", weight_type=weight_type))
    said = read_metadata(tmp_path / "m.onnx")[PROCESSORS_KEY]
    assert said == ("ARM, and x86 with VNNI or AMX" if weight_type == "int8" else "all")
    for has_sums in (True, False):
        monkeypatch.setattr(sessions, "has_int8_sums", lambda has_sums=has_sums: has_sums)
        if said == EVERYWHERE or has_sums:
            open_session(tmp_path / "m.onnx")
        else:
            with pytest.raises(
                InputError, match=r"exact on ARM, and x86 with VNNI or AMX only, .* --int8-weights uint8"
            ):
                open_session(tmp_path / "m.onnx")
    export_onnx(make_model().dense, tmp_path / "f.onnx", GraphOptions())
    assert PROCESSORS_KEY not in read_metadata(tmp_path / "f.onnx")
