"""The tasks, built in or from a user's file: each yields seeded, disjoint sets of prompts for the tokenizer at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from exporter.checks import require_type, take_integer
from exporter.errors import InputError, UsageError
from exporter.tasks import acronym, greater_than, ioi
from exporter.tasks.descriptions import DESCRIPTIONS
from exporter.tasks.file import is_file_task, read_task_file
from exporter.tasks.lines import MOST_LINES, MissingFileError, hash_data_file
from exporter.tasks.task import NO_LIMITS, PATCHING, Limits, SplitSizes, TaskData, TaskSpec
from exporter.tasks.tokenizer import Tokenizer

DEFAULT_SIZES = SplitSizes(patching=PATCHING)
FILE_PARAMETERS = ("template",)
"""What else is said of a file: a prompt with a slot for the user's text, see `Template.declare`."""
FILE_SIZES = SplitSizes(patching=MOST_LINES)
"""Of a file, all patching lines are used where nothing else is said."""

TASKS = {
    "acronym": TaskSpec(
        name="acronym",
        description=DESCRIPTIONS["acronym"],
        build=acronym.build,
        choices={"letters": (1, 3)},
    ),
    "greater-than": TaskSpec(
        name="greater-than",
        description=DESCRIPTIONS["greater-than"],
        build=greater_than.build,
    ),
    "ioi": TaskSpec(
        name="ioi",
        description=DESCRIPTIONS["ioi"],
        build=ioi.build,
        choices={"template": ("all", "paper")},
    ),
}


EXAMPLES = {
    "sentiment.jsonl": "the sentiment of a short review",
    "agreement.jsonl": "the verb that agrees with its subject",
}
"""Data files that come along, in the folder `examples`."""


def list_tasks(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every built-in task and example file, with a prompt and an answer each, as JSON-able rows."""
    rows: list[dict[str, Any]] = []
    for spec in TASKS.values():
        for parameters in spec.variants:
            prompt, answer = spec.example(tokenizer, **parameters)
            shown = {"prompt": prompt, "answer": answer, "parameters": parameters, "path": None}
            rows.append({"name": spec.name, "description": spec.description} | shown)
    for name, description in EXAMPLES.items():
        path = str(resources.files("exporter.tasks").joinpath("examples", name))
        first = json.loads(Path(path).read_text(encoding="utf-8").split("\n", 1)[0])
        answer = first.get("answer") or first["answers"][0]
        shown = {"prompt": first["prompt"], "answer": answer, "parameters": {}, "path": path}
        rows.append({"name": name, "description": description} | shown)
    return rows


def check_task(task: str) -> None:
    """Raise UsageError for what is neither the name of a task nor of a file."""
    if task not in TASKS and not is_file_task(task):
        raise UsageError(f"unknown task {task!r}; choose from {', '.join(TASKS)}, or give a .jsonl or .csv file")


def name_variant(data: TaskData) -> str:
    """A task with what of its parameters is not the default, such as `ioi template=paper`; a file by its name."""
    choices = {} if "sha256" in data.parameters else TASKS[data.task].choices
    given = {name: data.parameters[name] for name, values in choices.items() if data.parameters[name] != values[0]}
    return " ".join([data.task, *(f"{name}={value}" for name, value in given.items())])


def load_task(
    name: str | Path,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    sizes: SplitSizes | None = None,
    limits: Limits = NO_LIMITS,
    **parameters: Any,
) -> TaskData:
    """Build the sets of a task, by its name or from a .jsonl or .csv file.

    `sizes` are DEFAULT_SIZES where none are given, and FILE_SIZES of a file. The same arguments give the same prompts
    in every process. `limits` are the model's: lines of a file are held against them. A file has one parameter,
    `template`: a prompt with a slot for the user's text. Raises UsageError for an unknown task or parameter, InputError
    when the tokenizer cannot express the task or has too few prompts for the sizes, and for a file with anything wrong
    in it.
    """
    require_type("name", name, str, Path)
    name = str(name)
    check_task(name)
    if not all(callable(getattr(tokenizer, method, None)) for method in ("encode", "decode")):
        raise InputError(f"tokenizer must have encode and decode, and is {tokenizer!r:.60}; give model.tokenizer")
    take_integer("seed", seed)
    if sizes is None:
        sizes = FILE_SIZES if is_file_task(name) else DEFAULT_SIZES
    require_type("sizes", sizes, SplitSizes)
    require_type("limits", limits, Limits)
    spec = TASKS.get(name)
    choices = dict.fromkeys(FILE_PARAMETERS, ()) if spec is None else spec.choices
    for parameter, value in parameters.items():
        if parameter not in choices:
            takes = f"; it takes {', '.join(choices)}" if choices else "; it takes none"
            raise UsageError(f"task {name!r} has no parameter {parameter!r}{takes}")
        if spec is None:
            require_type(parameter, value, str)
        elif isinstance(value, bool) or value not in choices[parameter]:
            allowed = ", ".join(map(str, choices[parameter]))
            raise UsageError(f"{parameter} is {value!r} for the task {name!r}; choose from {allowed}")
    if spec is None:
        return read_task_file(name, tokenizer, seed=seed, sizes=sizes, limits=limits, **parameters).data
    return spec.build(tokenizer, seed=seed, sizes=sizes, **parameters)


def rebuild_task(
    name: str, parameters: Mapping[str, Any], tokenizer: Tokenizer, *, path: Path | None = None
) -> TaskData:
    """The sets of a `TaskData` again, from its name and parameters; `path` is where a task's file is now."""
    try:
        sizes, seed, chosen = SplitSizes(**parameters["sizes"]), int(parameters["seed"]), {}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"it does not say which prompts of the task {name!r} it was made with; export it again"
        ) from error
    if "sha256" in parameters:
        name = str(path or parameters.get("path", name))
        _check_same_file(name, str(parameters["sha256"]))
        chosen = {key: parameters[key] for key in FILE_PARAMETERS if key in parameters}
    elif path is not None:
        raise UsageError(f"--task is for a task from a file, and this is the task {name!r}; leave it out")
    elif name in TASKS:
        chosen = {key: parameters[key] for key in TASKS[name].choices if key in parameters}
    else:
        raise InputError(f"it was made for the task {name!r}, which this version does not have")
    return load_task(name, tokenizer, seed=seed, sizes=sizes, **chosen)


def _check_same_file(path: str, sha256: str) -> None:
    remedy = "say where the task's file is now: --task FILE"
    try:
        now = hash_data_file(path)
    except MissingFileError as error:
        raise InputError(f"no file {path}: it has moved; {remedy}") from error
    if now != sha256:
        raise InputError(f"{path} has changed (sha256 {now[:12]}, it was {sha256[:12]}); {remedy}")
