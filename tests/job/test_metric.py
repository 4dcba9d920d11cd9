"""A job whose search goes by another metric than KL: every place that tells of the search says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import SMALL

from exporter.graph.metadata import Origin
from exporter.job.options import Job
from exporter.job.plan import prepare
from exporter.outputs.manifest import Manifest
from exporter.tasks import SplitSizes


def test_what_the_search_went_by_is_said(run: Any, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    model, out = make_checkpoint(), tmp_path / "m.onnx"
    job = ("--task", "acronym", "--model", model, "--out", out, "--alpha", "0.01", *SMALL)
    said = run.succeeds(*job, "--metric", "js")
    assert "search: paper order, by js, alpha 0.01" in said
    assert "30 prompts of the held-out set are too few to tell a loss of one point" in said
    manifest = Manifest.load(tmp_path / "m.json")
    assert (manifest.circuit["metric"], manifest.circuit["alpha"]) == ("js", 0.01)
    assert Origin.read(out).record.metric == "js"
    last = [step["kl_without"] for step in manifest.circuit["trace"] if step["removed"]][-1]
    assert 0 < last < manifest.circuit["kl"]  # the trace is in the metric's unit, and the total KL is KL
    test = manifest.test
    assert test.ece is not None and test.paired is not None
    assert test.paired.difference == test.circuit.accuracy - test.dense.accuracy
    assert "by js, alpha 0.01" in run.succeeds("inspect", out)
    assert "calibration" in run.succeeds("inspect", tmp_path / "m.json")
    assert json.loads(run.succeeds(*job, "--metric", "js", "--dry-run", "--json", "--force"))["metric"] == "js"


def test_a_journal_is_of_one_metric(make_checkpoint: Callable[..., Path]) -> None:
    sizes = SplitSizes(patching=20, selection=20, test=20)
    given = {"model": str(make_checkpoint()), "alpha": 0.01, "sizes": sizes}
    keys = [prepare(Job("acronym", Path("m.onnx"), metric=metric, **given)).search_key for metric in ("kl", "js")]
    assert keys[1] == keys[0] | {"metric": "js"}
    assert "metric" not in keys[0]  # as in journals of earlier versions
