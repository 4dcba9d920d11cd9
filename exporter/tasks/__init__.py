"""The built-in tasks: each yields seeded, disjoint sets of prompts for the tokenizer at hand."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from exporter.errors import UsageError
from exporter.tasks import acronym, greater_than, ioi
from exporter.tasks.task import SplitSizes, TaskData, TaskSpec, Tokenizer

__all__ = ["TASKS", "SplitSizes", "TaskData", "TaskSpec", "Tokenizer", "load_task"]

DEFAULT_SIZES = SplitSizes()

_SWEEPS = json.loads(resources.files("exporter.tasks").joinpath("alphas.json").read_text(encoding="utf-8"))

TASKS = {
    "acronym": TaskSpec(
        name="acronym",
        description="the third letter of a three-word acronym",
        sweep=_SWEEPS["acronym"],
        build=acronym.build,
    ),
    "greater-than": TaskSpec(
        name="greater-than",
        description="a two-digit year later than the one named before",
        sweep=_SWEEPS["greater-than"],
        build=greater_than.build,
    ),
    "ioi": TaskSpec(
        name="ioi",
        description="the one of two names that was not repeated (indirect object identification)",
        sweep=_SWEEPS["ioi"],
        build=ioi.build,
        choices={"template": ("all", "paper")},
    ),
}


def load_task(
    name: str, tokenizer: Tokenizer, *, seed: int = 0, sizes: SplitSizes = DEFAULT_SIZES, **parameters: Any
) -> TaskData:
    """Build the sets of a task.

    The same arguments give the same prompts in every process. Raises UsageError for an unknown task or parameter,
    InputError when the tokenizer cannot express the task or has too few prompts for the sizes.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    spec = TASKS[name]
    for parameter, value in parameters.items():
        if parameter not in spec.choices:
            known = f"; it takes {', '.join(spec.choices)}" if spec.choices else "; it takes none"
            raise UsageError(f"task {name!r} has no parameter {parameter!r}{known}")
        if value not in spec.choices[parameter]:
            choices = ", ".join(map(str, spec.choices[parameter]))
            raise UsageError(f"{parameter} is {value!r} for the task {name!r}; choose from {choices}")
    return spec.build(tokenizer, seed=seed, sizes=sizes, **parameters)
