"""The graph that is written: standard operators only, small, at the opset and IR version that runtimes know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from test_hostile_inputs import FORMS, rewrite
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Circuit, Head
from exporter.errors import InputError
from exporter.graph.description import describe_onnx
from exporter.graph.export import export_onnx, read_metadata
from exporter.graph.options import GraphOptions
from exporter.job.command import write_command
from exporter.job.options import Job
from exporter.network.scope import Scope
from exporter.rewrite.surgery import rewrite_model


def test_opset_ir_version_names_and_metadata(tmp_path: Path) -> None:
    model = rewrite_model(make_model(), Circuit(heads=(Head(0, 1),), mlps=(1,)), make_prompts(5, 4))
    found = export_onnx(model, tmp_path / "m.onnx", metadata={"key": "value"})
    assert (found.opset, found.ir_version) == (20, 10)
    assert (found.inputs, found.outputs) == ({"input_ids": ["batch_size", 4]}, {"logits": ["batch_size", 4, 37]})
    proto = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in proto.graph.node} == {""}
    assert found.nodes == len(proto.graph.node) == 27  # 4 embed, 12 attention with its table, 7 MLP, 4 unembed
    assert read_metadata(tmp_path / "m.onnx") == {
        "key": "value",
        "export_circuit.max_length": "4",
        "export_circuit.vocab_size": "37",
    }
    used = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]  # one self-contained file


@pytest.mark.parametrize("family", VARIANTS)
def test_opset_17_has_no_later_operator(family: str, tmp_path: Path) -> None:
    """The checker holds each node against its operator at the file's opset: Gelu is none, axes are attributes."""
    model = rewrite(family)
    scope = Scope.blank(model.W_E.shape[1])
    for name, options in FORMS.items():
        found = export_onnx(model, tmp_path / f"{name}.onnx", replace(options, opset=17, guard=True), scope=scope)
        assert (found.opset, found.ir_version) == (17, 8)
        if options.target == "portable":
            onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)


def test_another_opset_is_refused() -> None:
    with pytest.raises(InputError, match="opset is 18; choose from 20, 17"):
        GraphOptions(opset=18)
    with pytest.raises(InputError, match="--opset is 18; choose from 20, 17"):
        Job("acronym", None, opset=18)
    assert "--opset 17" in write_command(Job("acronym", None, opset=17))


def test_each_layer_has_its_own_head_count(tmp_path: Path) -> None:
    model = make_model(n_layers=2, n_heads=3, d_head=4)
    circuit = Circuit(heads=(Head(0, 0), Head(0, 2), Head(1, 1)), mlps=())
    export_onnx(rewrite_model(model, circuit, make_prompts(5, 4)), tmp_path / "m.onnx")
    shapes = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert shapes["a0.qkv.weight"] == (12, 3 * 2 * 4)
    assert shapes["a1.qkv.weight"] == (12, 3 * 1 * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not protobuf at all", r"m\.onnx is not a readable ONNX file"),
        (None, r"no file .*m\.onnx'; give an ONNX file"),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    for read in (read_metadata, describe_onnx):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "m.onnx")
