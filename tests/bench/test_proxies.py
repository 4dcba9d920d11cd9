"""What a graph costs, against cases counted by hand and against CircuitModel's own parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import VOCAB, make_model

from exporter.bench.proxies import count_proxies
from exporter.errors import InputError
from exporter.graph.export import export_onnx

N = TensorProto.FLOAT


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[str | int]],
    weights: dict[str, np.ndarray],
    output: str = "y",
) -> Path:
    """A model with these nodes, float inputs, and one output."""
    kinds = {"ids": TensorProto.INT64, "u": TensorProto.UINT8}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kinds.get(name, N), shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains), path)
    return path


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def ort(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, domain="com.microsoft", **attributes)


CASES = {
    "MatMul": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": zeros(5, 7)}, 2 * 6 * 5 * 7),
    "batched": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": zeros(2, 5, 7)}, 2 * 6 * 5 * 7),
    "Gemm": (
        [
            helper.make_node("Reshape", ["x", "rows"], ["r"]),
            helper.make_node("Gemm", ["r", "w"], ["y"], transB=1),
        ],
        {"w": zeros(7, 5), "rows": np.array([-1, 5])},
        2 * 6 * 5 * 7,
    ),
    "Einsum": ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="bpd,df->bpf")], {"w": zeros(5, 7)}, 420),
    "two products": (
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])],
        {"w": zeros(5, 7), "v": zeros(7, 4)},
        420 + 2 * 6 * 7 * 4,
    ),
    "int8": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w", "zero"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=N),
            helper.make_node("Mul", ["f", "scale"], ["m"]),
            helper.make_node("MatMul", ["m", "v"], ["y"]),
        ],
        {"w": zeros(5, 7, dtype=np.int8), "v": zeros(7, 4)},
        420 + 2 * 6 * 7 * 4,
    ),
    "elementwise alone": ([helper.make_node("Relu", ["x"], ["y"])], {}, 0),
    "FusedMatMul": ([ort("FusedMatMul", ["x", "w"], ["y"], transB=1)], {"w": zeros(7, 5)}, 420),
    "behind ONNX Runtime's own": (
        [
            ort("DynamicQuantizeMatMul", ["x", "w", "s"], ["a"]),
            ort("FastGelu", ["a", "bias"], ["g"]),
            ort("SkipLayerNormalization", ["g", "g", "bias"], ["n", "", "", "sum"]),
            helper.make_node("Add", ["n", "sum"], ["h"]),
            ort("MatMulNBits", ["h", "packed", "scales"], ["y"], K=7, N=4, bits=4, block_size=16),
        ],
        {"w": zeros(5, 7, dtype=np.int8), "s": zeros(1), "bias": zeros(7), "packed": zeros(4, 1, 8, dtype=np.uint8),
         "scales": zeros(4)},
        420 + 2 * 6 * 7 * 4,
    ),
    "MultiHeadAttention": ([ort("MultiHeadAttention", ["x", "x", "x"], ["y"], num_heads=1)], {}, 2 * 2 * 2 * 3 * 3 * 5),
    "Attention": (
        [helper.make_node("Attention", ["x", "x", "x"], ["y"], q_num_heads=1, kv_num_heads=1)],
        {},
        2 * 2 * 2 * 3 * 3 * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_flops_by_hand(case: str, tmp_path: Path) -> None:
    nodes, weights, expected = CASES[case]
    path = save(tmp_path / "m.onnx", nodes, {"x": ["batch", "pos", 5]}, weights)
    found = count_proxies(path, {"x": (2, 3, 5)})
    assert found.flops == expected
    assert found.nodes == len(nodes)


@pytest.mark.parametrize(
    "node",
    [
        ort("GroupQueryAttention", ["x", "x", "x"], ["y"]),
        ort("FusedMatMul", ["x", "w"], ["y"], transBatchA=1),
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="...d,df->...f"),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_what_cannot_be_told_is_not_taken_for_nothing(node: onnx.NodeProto, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node], {"x": ["batch", "pos", 5]}, {"w": zeros(5, 7)})
    assert count_proxies(path, {"x": (2, 3, 5)}).flops is None


def test_bytes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"table": zeros(100, 5), "w": zeros(5, 7), "unread": np.arange(3)}
    path = save(tmp_path / "m.onnx", nodes, {"ids": ["batch", "pos"]}, weights)
    found = count_proxies(path, {"ids": (2, 3)})
    assert (found.parameters, found.weight_bytes) == (535, 4 * 535 + 24)
    assert found.file_bytes == path.stat().st_size
    assert found.read_bytes == 4 * (2 * 3 * 5 + 35) + 24
    assert count_proxies(path, {"ids": (200, 3)}).read_bytes == found.weight_bytes  # no more than there is
    assert count_proxies(path).flops is None


def test_external_data_counts(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [6, 500]},
                {"w": zeros(500, 70)})  # fmt: skip
    before = count_proxies(path, {"x": (6, 500)})
    onnx.save(onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    after = count_proxies(tmp_path / "e.onnx", {"x": (6, 500)})
    assert (after.flops, after.weight_bytes) == (before.flops, before.weight_bytes) == (420_000, 140_000)
    assert after.file_bytes == sum((tmp_path / name).stat().st_size for name in ("e.onnx", "e.bin")) > 140_000


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("form", ["plain", "masked"])
def test_a_dense_model_by_formula(family: str, form: str, tmp_path: Path) -> None:
    from exporter.graph.options import GraphOptions
    from exporter.network.attention import Attention

    batch, pos = 3, 5
    dense = make_model(family, n_layers=3).dense
    export_onnx(dense, tmp_path / "m.onnx", GraphOptions(form=form))  # type: ignore[arg-type]
    names = ("input_ids",) if form == "plain" else ("input_ids", "attention_mask")
    found = count_proxies(tmp_path / "m.onnx", dict.fromkeys(names, (batch, pos)))
    matrices = sum(p.numel() for s in dense.sublayers() for p in s.parameters() if p.ndim == 2)
    expected = 2 * batch * pos * (matrices + dense.W_U.numel())
    for sublayer in dense.sublayers():
        if isinstance(sublayer, Attention):
            expected += 4 * batch * pos * pos * sublayer.W_Q.shape[1]
            if dense.rotary is not None:  # queries and keys are turned by a product
                expected += 2 * 2 * batch * pos * sublayer.W_Q.shape[1] * sublayer.d_head
    assert found.flops == expected
    assert dense.W_U.shape[0] == VOCAB


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not a readable ONNX file"):
        count_proxies(tmp_path / "m.onnx")
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [6, 500]}, {})
    with pytest.raises(InputError, match="no shape for the input x"):
        count_proxies(path, {})
