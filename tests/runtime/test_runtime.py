"""ONNX Runtime: what is missing is said, with the command that mends it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model, make_prompts

from exporter.errors import InputError, MissingRuntimeError
from exporter.graph.export import export_onnx
from exporter.runtime.session import import_onnxruntime, open_session, run_logits


def test_without_onnxruntime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'export-circuit\[cpu\]'"):
        import_onnxruntime()


def test_the_rest_of_an_uninstalled_wheel_is_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(MissingRuntimeError, match="ONNX Runtime is broken: pip uninstall"):
        import_onnxruntime()


def test_a_file_that_it_cannot_load_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load m\.onnx"):
        open_session(tmp_path / "m.onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_provider_that_is_not_there_is_said(tmp_path: Path) -> None:
    export_onnx(make_model().dense, tmp_path / "m.onnx")
    with pytest.raises(MissingRuntimeError, match="has no CUDAExecutionProvider"):
        open_session(tmp_path / "m.onnx", provider="cuda")


@pytest.mark.gpu
def test_cuda_computes_the_same(tmp_path: Path) -> None:
    model, ids = make_model(), make_prompts(3, 5).input_ids
    export_onnx(model.dense, tmp_path / "m.onnx")
    logits = run_logits(open_session(tmp_path / "m.onnx", provider="cuda"), ids.numpy())
    np.testing.assert_allclose(logits, model.dense(ids), rtol=1e-3, atol=1e-3)
