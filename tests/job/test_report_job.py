"""A job with a report: the page and what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import Run
from jobs import CIRCUIT, SMALL

from exporter.outputs.bundle import is_bundle
from exporter.outputs.manifest import Manifest
from exporter.outputs.report import render_report


def test_it_leaves_a_page_beside_each_manifest(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    Run().succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", "--bundle", tmp_path / "b",
        "--circuit", tmp_path / "c.json", "--report", *SMALL,
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c.json", "m.html", "m.json", "m.onnx"]
    assert is_bundle(tmp_path / "b")
    manifest = Manifest.load(tmp_path / "m.json")
    assert (tmp_path / "m.html").read_text(encoding="utf-8") == render_report(manifest)
    assert (tmp_path / "b" / "model.html").read_text(encoding="utf-8") == render_report(
        Manifest.load(tmp_path / "b" / "model.json")
    )
    assert manifest.command is not None and manifest.command.endswith(
        "--report --patching-prompts 20 --selection-prompts 20 --test-prompts 30"
    )
    assert manifest.model.d_mlp == 64
    n = manifest.test.n + sum(figures.n for figures in manifest.ood.values())
    assert [prompt.of for prompt in manifest.prompts] == [n] * 10
    assert [prompt.rank for prompt in manifest.prompts][:5] == [1, 2, 3, 4, 5] and manifest.prompts[-1].rank == n
    assert manifest.attention is not None
    assert [(head.layer, head.index) for head in manifest.attention.heads] == [(0, 1), (1, 0)]
    assert [memory.batch for memory in manifest.memory] == [1, 32]
