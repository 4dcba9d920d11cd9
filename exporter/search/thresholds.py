"""Default thresholds of a search, chosen by sweeps over alpha.

`alphas.json` holds the results of benchmarks/sweep_alpha.py: by model, then by task with its parameters, or by a data
file's name. A record applies only to the weights and the data file that it was made with, compared by sha256. Without
such a record the default comes from the closest task or model; `Threshold.sweep` is then None.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE_ALPHA = 0.02
"""The default threshold for a task from a data file without a sweep, in nats."""

_SWEEPS: dict[str, dict[str, Any]] = json.loads(
    resources.files("exporter.search").joinpath("alphas.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Threshold:
    """An alpha in nats, and its origin in words.

    sweep: the alphas that were tried and the rule that chose one; None if no sweep was made for this model and task.
    """

    alpha: float
    origin: str
    sweep: dict[str, Any] | None = None


def find_threshold(variant: str, *, file_sha256: str | None, model: str, model_sha256: str) -> Threshold:
    """The default threshold for a task (`variant` as from `name_variant`) on a model.

    Without a sweep of just this task and these weights: FILE_ALPHA for a data file; else the first that exists of the
    same variant on a model of this name, the task with default or with other parameters there, and the same variant or
    the task with default parameters on the bundled model.
    """
    record = _SWEEPS.get(model, {}).get(variant)
    if record is not None and (record.get("file_sha256"), record["model_sha256"]) == (file_sha256, model_sha256):
        return Threshold(float(record["alpha"]), f"chosen for {variant} on {model}", record)
    if file_sha256 is not None:
        return Threshold(FILE_ALPHA, "the default for data files")
    task = variant.split(" ")[0]
    others = [known for known in _SWEEPS.get(model, {}) if known.split(" ")[0] == task]
    nearest = [(model, variant), (model, task), *((model, v) for v in others), ("bundled", variant), ("bundled", task)]
    model, variant = next((m, v) for m, v in nearest if v in _SWEEPS.get(m, {}))
    return Threshold(float(_SWEEPS[model][variant]["alpha"]), f"chosen for {variant} on {model}")
