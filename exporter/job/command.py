"""The command line that does a job again, for its manifest and its report."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from exporter.job.options import Job
from exporter.tasks import SplitSizes

# The options of a job's fields; what says only how the job runs is left out.
_OPTIONS = {
    "revision": "--revision",
    "preset": "--preset",
    "alpha": "--alpha",
    "metric": "--metric",
    "circuit": "--circuit",
    "heal": "--heal",
    "teacher": "--teacher",
    "seed": "--seed",
    "precision": "--precision",
    "with_past": "--with-past",
    "logits": "--logits",
    "vocab": "--vocab",
    "scales": "--int8-scales",
    "weights": "--int8-weights",
    "target": "--target",
    "external_data": "--external-data",
    "guard": "--guard",
    "opset": "--opset",
    "report": "--report",
    "device": "--device",
    "dtype": "--dtype",
}
_BUDGET = {
    "min_accuracy": "--min-accuracy",
    "max_kl": "--max-kl",
    "max_params": "--max-params",
    "max_latency_ms": "--max-latency-ms",
    "batch": "--batch",
    "threads": "--threads",
}
_SIZES = {"patching": "--patching-prompts", "selection": "--selection-prompts", "test": "--test-prompts"}
_ABLATION = {"kind": "--ablation", "by": "--mean", "align": "--align"}


def write_command(job: Job) -> str:
    """The command, quoted for a shell. Outputs have their names without their folders."""
    words = ["export-circuit", "--task", job.task, "--model", job.model]
    for option, path in (("--out", job.out), ("--bundle", job.bundle)):
        words += [] if path is None else [option, path.name]
    words += [word for name in job.targets for word in ("--for", name)]
    words += _write_changes(job, _OPTIONS)
    words += [] if job.mlps else ["--no-mlps"]
    words += [] if job.budget is None else _write_changes(job.budget, _BUDGET)
    words += [] if job.ablation is None else _write_changes(job.ablation, _ABLATION)
    sizes = job.sizes or SplitSizes()
    words += _write_changes(sizes, _SIZES)
    for name, value in job.parameters.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)


def _write_changes(of: Any, options: dict[str, str]) -> list[str]:
    """Options of the fields that do not have their default; a flag takes no value."""
    words = []
    for field in fields(of):
        value = getattr(of, field.name)
        if field.name in options and value != field.default:
            words += [options[field.name]] if value is True else [options[field.name], str(value)]
    return words
