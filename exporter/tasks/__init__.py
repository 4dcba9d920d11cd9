"""The built-in tasks: each yields seeded, disjoint sets of prompts for the tokenizer at hand."""

from __future__ import annotations

from typing import Any

from exporter.errors import UsageError
from exporter.tasks import acronym, greater_than, ioi
from exporter.tasks.task import SplitSizes, TaskData, TaskSpec, Tokenizer

__all__ = ["TASKS", "SplitSizes", "TaskData", "TaskSpec", "Tokenizer", "load_task"]

DEFAULT_SIZES = SplitSizes()

TASKS = {
    "acronym": TaskSpec(
        name="acronym",
        description="the third letter of a three-word acronym",
        alpha=0.02,
        build=acronym.build,
    ),
    "greater-than": TaskSpec(
        name="greater-than",
        description="a two-digit year later than the one named before",
        alpha=0.09,
        build=greater_than.build,
    ),
    "ioi": TaskSpec(
        name="ioi",
        description="the one of two names that was not repeated (indirect object identification)",
        alpha=0.02,
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
