"""The command in a manifest asks for the very job that wrote it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from exporter.circuit import Ablation
from exporter.cli.export import ExportOptions
from exporter.cli.main import app
from exporter.job.command import write_command
from exporter.job.options import Job
from exporter.search.rules import Budget
from exporter.tasks import SplitSizes

OUT = Path("m.onnx")
SIZES = SplitSizes()


def read_command(command: str) -> Job:
    """The job that a command line asks for."""
    name, *words = shlex.split(command)
    assert name == "export-circuit"
    context = get_command(app).make_context(name, words)
    return ExportOptions(**context.params).make_job()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "paper", "metric": "js", "alpha": 0.01},
        {"report": True, "bundle": Path("my bundle")},
        {"preset": "paper", "alpha": 0.03, "mlps": False, "ablation": Ablation("zero", "global"), "seed": 3},
        {"budget": Budget(min_accuracy="-2pt", max_latency_ms=3.5, batch=8, threads=1), "heal": "refit"},
        {"budget": Budget(max_params="3%", max_kl=0.1), "teacher": "both", "sizes": SplitSizes(30, 40, 50)},
        {"circuit": Path("c.json"), "with_past": True, "precision": "int8", "scales": "token", "target": "ort"},
        {"precision": "int8", "scales": "tensor", "weights": "int7"},
        {"logits": "answers", "vocab": "task", "external_data": True, "revision": "v1", "model": "org/it's"},
        {"task": "acronym", "parameters": {"letters": 3}, "ablation": Ablation(align="right")},
    ],
)
def test_it_asks_for_the_same_job(options: dict[str, Any]) -> None:
    job = Job(**({"task": "ioi", "out": OUT, "sizes": SIZES} | options))
    assert read_command(write_command(job)) == job


def test_what_says_only_how_a_job_runs_is_left_out() -> None:
    job = Job(task="ioi", out=Path("/some/where/m.onnx"), force=True, resume=True, memory_limit=2**30)
    assert write_command(job) == "export-circuit --task ioi --model auto --out m.onnx"
    assert read_command(write_command(job)) == replace(
        job, out=OUT, force=False, resume=False, memory_limit=None, sizes=SIZES
    )
