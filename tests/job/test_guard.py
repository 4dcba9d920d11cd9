"""`--guard` in the main job: what the manifest, the card and the note say, and that the file can be verified again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jobs import CIRCUIT, SMALL
from tiers import as_slow

from exporter.evidence.guard import note_guard
from exporter.evidence.guarded import GuardFigures, Refusals, describe_guard
from exporter.graph.scope import read_scope
from exporter.outputs.manifest import Manifest

if TYPE_CHECKING:
    from conftest import Run


@pytest.mark.parametrize(
    "options", [as_slow(((),)), ("--precision", "int8", "--int8-scales", "token", "--vocab", "task")]
)
def test_the_job_says_how_well_its_guard_tells(
    options: tuple[str, ...], run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    said = run.succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--circuit", tmp_path / "c.json",
        "--out", tmp_path / "m.onnx", "--guard", *SMALL, *options,
    )  # fmt: skip
    manifest = Manifest.load(tmp_path / "m.json")
    guard = manifest.guard
    assert guard is not None
    assert {"in_scope", "scope_distance"} <= set(manifest.onnx.outputs)
    assert (guard.n_fitted, guard.n_aside, guard.test.n) == (20, 20, 30)
    assert guard.alarms == pytest.approx(1 / 21)
    assert any("its limit was set on 20 selection prompts" in note for note in manifest.notes)
    assert set(guard.unseen) == set(manifest.ood)
    assert set(guard.others) == {"greater-than", "ioi", "sentences", "random tokens"}
    assert all(0 <= found.refused <= 1 and 0 <= (found.auroc or 0) <= 1 for found in guard.others.values())
    assert "--guard" in (manifest.command or "")
    assert "false alarms of the guard" in said
    assert read_scope(tmp_path / "m.onnx") is not None
    assert "is exact on 30 prompts" in run.succeeds("verify", tmp_path / "m.onnx")


def test_the_figures_as_a_sentence() -> None:
    test = Refusals(500, 0.01, (0.004, 0.023))
    figures = GuardFigures(
        "mahalanobis", 64, 250, 50, 1 / 51, test, {"words": test}, {"ioi": Refusals(9, 1.0, (0, 1), 1.0)}
    )
    assert describe_guard(figures) == (
        "its guards refuse 1.0% [0.4%, 2.3%] of 500 held-out prompts of the task, of its unseen sets words 1.0%, and "
        "of what is not of the task: ioi 100.0%"
    )
    assert note_guard(figures) == (
        "the guard may refuse 2.0% of the task's prompts instead of 1%: its limit was set on 50 selection prompts, and "
        "1% takes 99",
    )
    assert note_guard(None) == ()
