"""Peak memory in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_model, make_prompts

from exporter.errors import InputError
from exporter.evidence.footprint import compare_memory
from exporter.graph.export import export_onnx


def test_the_larger_file_takes_more(tmp_path: Path) -> None:
    small, large = make_model(), make_model(n_layers=8, n_heads=8, d_head=64)  # some 25 million parameters: 100 MB
    for name, model in (("small", small), ("large", large)):
        export_onnx(model.dense, tmp_path / f"{name}.onnx")
    prompts = make_prompts(4, 6)
    found = compare_memory(tmp_path / "large.onnx", tmp_path / "small.onnx", prompts.input_ids)
    assert found.batch == 4
    assert found.dense > found.circuit + 60_000_000
    (tmp_path / "small.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot be measured"):
        compare_memory(tmp_path / "small.onnx", tmp_path / "large.onnx", prompts.input_ids)
