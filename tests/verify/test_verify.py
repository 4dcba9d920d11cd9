"""The gate: it passes what is exact, and refuses one changed weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exports import corrupt
from onnx import numpy_helper
from tiny import all_heads, make_model, make_prompts

from exporter.circuit import Ablation, Align, Circuit, Head
from exporter.errors import ExactnessError
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session, run_logits
from exporter.verify.exactness import verify_export
from exporter.verify.figures import Exactness


class TestGate:
    model = make_model(n_layers=2, n_heads=2)
    circuit = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,))
    patching, prompts = make_prompts(20, 5, seed=1), make_prompts(40, 5, seed=2)

    def export(self, folder: Path) -> tuple[torch.nn.Module, Path]:
        rewritten = rewrite_model(self.model, self.circuit, self.patching)
        export_onnx(rewritten, folder / "m.onnx")
        return rewritten, folder / "m.onnx"

    def verify(self, rewritten: torch.nn.Module, path: Path) -> object:
        return verify_export(self.model, self.circuit, rewritten, path, patching=self.patching, prompts=self.prompts)

    def test_passes_an_exact_export(self, tmp_path: Path) -> None:
        found = self.verify(*self.export(tmp_path))
        assert 0 <= found.hooked_vs_rewritten <= found.limit
        assert 0 <= found.rewritten_vs_onnx <= found.limit
        assert found.prompts == 40

    @pytest.mark.parametrize("name", ["a0.qkv.weight", "a1.out.weight", "m1.in.bias", "W_pos", "W_E"])
    def test_one_changed_weight_in_the_file_is_refused(self, name: str, tmp_path: Path) -> None:
        rewritten, path = self.export(tmp_path)
        corrupt(path, name, 0.5)
        with pytest.raises(ExactnessError, match="rewritten vs onnx: logits differ by"):
            self.verify(rewritten, path)

    def test_a_file_with_past_is_gated_token_by_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rewritten = rewrite_model(self.model, self.circuit, self.patching)
        export_onnx(rewritten, tmp_path / "m.onnx", GraphOptions(form="past"))
        assert self.verify(rewritten, tmp_path / "m.onnx").prompts == 40
        proto = onnx.load(tmp_path / "m.onnx")  # the keys of the past forgotten from the second call on
        (node,) = (node for node in proto.graph.node if node.output[0] == "present.1.key")
        proto.graph.node.add(op_type="Mul", name="lost", input=[node.input[0], "none"], output=["lost"])
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "none"))
        node.input[0] = "lost"
        nodes = sorted(proto.graph.node, key=lambda n: n.name != "lost")
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        onnx.save(proto, tmp_path / "m.onnx")
        ids = self.prompts.input_ids
        np.testing.assert_allclose(
            run_logits(open_session(tmp_path / "m.onnx"), ids.numpy()), rewritten(ids), rtol=1e-4, atol=1e-4
        )
        with pytest.raises(ExactnessError, match="rewritten vs onnx"):
            self.verify(rewritten, tmp_path / "m.onnx")

    def test_nan_is_refused(self, tmp_path: Path) -> None:
        rewritten, path = self.export(tmp_path)
        corrupt(path, "m1.in.bias", np.nan)
        with pytest.raises(ExactnessError, match="differ by nan"):
            self.verify(rewritten, path)

    def test_a_rewriting_that_is_not_the_circuit_is_refused(self, tmp_path: Path) -> None:
        other = Circuit(heads=(Head(0, 0), Head(1, 0)), mlps=(1,))
        wrong = rewrite_model(self.model, other, self.patching)
        export_onnx(wrong, tmp_path / "m.onnx")
        with pytest.raises(ExactnessError, match="hooked vs rewritten"):
            self.verify(wrong, tmp_path / "m.onnx")

    def test_means_of_other_prompts_are_refused(self, tmp_path: Path) -> None:
        wrong = rewrite_model(self.model, self.circuit, make_prompts(20, 5, seed=9))
        export_onnx(wrong, tmp_path / "m.onnx")
        with pytest.raises(ExactnessError, match="hooked vs rewritten"):
            self.verify(wrong, tmp_path / "m.onnx")

    def test_a_file_that_the_checker_refuses(self, tmp_path: Path) -> None:
        rewritten, path = self.export(tmp_path)
        proto = onnx.load(path)
        proto.graph.node[1].op_type = "NoSuchOperator"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ExactnessError, match=r"ONNX checker refuses m\.onnx"):
            self.verify(rewritten, path)


def make_massive(model: LanguageModel) -> None:
    """Give a GPT-2 of two layers a massive first token: MLP 0 adds 4e6 w to its residual, MLP 1 takes 8e6 off.

    Each is a step of two neurons, relu(x) - relu(x - 1), that the first token alone reaches.
    """
    width = model.hf.config.n_embd
    u, w = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, 2)], 1))[0].T[1:]  # of mean 0
    first, second = model.hf.transformer.h
    model.hf.transformer.wpe.weight[0] = 50 * u
    for block, direction, added in ((first, u, 4e6), (second, w, -8e6)):
        block.ln_2.weight.fill_(1.0)
        block.ln_2.bias.fill_(0.0)
        top = 10 * width**0.5  # what a residual along the direction comes to
        for neuron, below, sign in ((0, 1.5, 1), (1, 0.5, -1)):
            block.mlp.c_fc.weight[:, neuron] = 10 * direction
            block.mlp.c_fc.bias[neuron] = below - top
            block.mlp.c_proj.weight[neuron] = sign * added * w


def test_massive_first_tokens_are_for_means_counted_from_the_first(tmp_path: Path) -> None:
    """At the first token of the shorter prompts, the mean of MLP 1 counted from the last is half of its own.

    It cancels what MLP 0 adds to the last digit; counted from the first, -4e6 are left, as in the dense model.
    """
    torch.manual_seed(0)
    model = make_model(n_layers=2, n_heads=2, activation="relu")
    make_massive(model)
    mask = torch.arange(5) >= torch.tensor([0, 2]).repeat(10)[:, None]
    patching, prompts = (replace(make_prompts(20, 5, seed=seed), mask=mask) for seed in (1, 2))

    def verify(align: Align) -> Exactness:
        circuit = Circuit(heads=all_heads(model), mlps=(0,), ablation=Ablation(align=align))
        rewritten = rewrite_model(model, circuit, patching)
        export_onnx(rewritten, tmp_path / "m.onnx", GraphOptions(form="masked"))
        return verify_export(model, circuit, rewritten, tmp_path / "m.onnx", patching=patching, prompts=prompts)

    assert verify("left").prompts == 20
    with pytest.raises(ExactnessError, match=r"logits differ by .* no file was left\. Means counted .* --align left"):
        verify("right")
