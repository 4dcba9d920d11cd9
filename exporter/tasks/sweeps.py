"""The threshold that a search takes where none is given, and what it was chosen for.

`alphas.json` holds what benchmarks/sweep_alpha.py tried: by model, then by task with its parameters, or by a data
file's name. A record counts for just the weights and the file that it was made with, by their sha256. Where nothing
was swept, the nearest threshold there is will do to begin with, but is not said to come from a sweep.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE_ALPHA = 0.02
"""The default threshold for a task from a file that nobody has swept, in nats."""

_SWEEPS: dict[str, dict[str, Any]] = json.loads(
    resources.files("exporter.tasks").joinpath("alphas.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Threshold:
    """An alpha in nats, and in words where it comes from.

    `sweep` is what was tried, and the rule that chose it; None where that was for something else.
    """

    alpha: float
    origin: str
    sweep: dict[str, Any] | None = None


def find_threshold(variant: str, *, file_sha256: str | None, model: str, model_sha256: str) -> Threshold:
    """The threshold for a task, named as by `name_variant`, on a model.

    Of what was not swept: that of the task on this model, with its default parameters or else with others, else of the
    same on the bundled one; for a file FILE_ALPHA.
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
