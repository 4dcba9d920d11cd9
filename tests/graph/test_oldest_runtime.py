"""Files run with the oldest ONNX Runtime that reads their opset and IR version, and its optimizer takes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_hostile_inputs import FORMS, LENGTH, NO_ROWS, rewrite
from tiers import as_slow
from waits import HANG

from exporter.graph.export import export_onnx
from exporter.runtime.session import make_feeds, open_session

PYTHONS = {opset: os.environ.get(f"EXPORT_CIRCUIT_OPSET_{opset}_PYTHON") for opset in (20, 17)}
ANSWER = """
import sys
import numpy as np, onnxruntime
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + ".onnx", providers=["CPUExecutionProvider"])
    np.save(path, session.run(["logits"], dict(np.load(path + ".npz")))[0])
"""
OPTIMIZE = """
import logging, sys
from onnxruntime.transformers.optimizer import optimize_model
logging.disable(logging.CRITICAL)
for path in sys.argv[1:]:
    optimize_model(path, model_type="gpt2", num_heads=0, hidden_size=0, opt_level=0)
"""


@pytest.mark.parametrize("opset", PYTHONS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_oldest_runtime_runs_every_form(family: str, opset: int, tmp_path: Path) -> None:
    """ONNX Runtime 1.18, and for opset 17 1.15, the oldest that Python 3.11 has: no rows, and the answers of today."""
    if (python := PYTHONS[opset]) is None:
        pytest.skip("no environment with the oldest ONNX Runtime; make test-oldest makes one")
    model, ids, expected = rewrite(family), np.array([[2, 5, 8, 11, 14], [5, 2, 11, 8, 2]], np.int64), {}
    for name, options in FORMS.items():
        path = tmp_path / f"{name}.onnx"
        export_onnx(model, path, replace(options, opset=opset))
        feeds = make_feeds(session := open_session(path), ids, np.ones(ids.shape, bool), {})
        np.savez(tmp_path / f"{name}.npz", **feeds)
        expected[name] = session.run(["logits"], feeds)[0]
    cases = json.dumps([(f"{name}.onnx", LENGTH) for name in FORMS])
    for code, arguments in ((NO_ROWS, [cases]), (ANSWER, list(FORMS))):
        command = [str(Path(python).absolute()), "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, cwd=tmp_path)
        assert done.returncode == 0, (done.returncode, done.stderr[-300:])
        for name, shape in json.loads(done.stdout or "{}").items():
            assert shape[0] == 0, (name, shape)
    for name, logits in expected.items():
        near = 1e-4 if FORMS[name].precision == "fp32" else 0.05
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), logits, rtol=near, atol=near, err_msg=name)


@pytest.mark.parametrize("family", [as_slow("gpt2"), "llama"])
def test_the_transformers_optimizer_takes_float_files(family: str, tmp_path: Path) -> None:
    """In int8 it was seen to fail on files of llama: only float files are held to it."""
    pytest.importorskip("onnxruntime.transformers")
    names, model = [name for name, o in FORMS.items() if o.precision != "int8"], rewrite(family)
    for name in names:
        export_onnx(model, tmp_path / f"{name}.onnx", FORMS[name])
    command = [sys.executable, "-c", OPTIMIZE, *(f"{name}.onnx" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-500:]
