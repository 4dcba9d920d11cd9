"""The tasks, built in or from a user's file: each yields seeded, disjoint sets of prompts for the tokenizer at hand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.tasks.encoding import Example
    from exporter.tasks.file import is_file_task, read_task_file
    from exporter.tasks.lines import DataFileError
    from exporter.tasks.registry import (
        DEFAULT_SIZES,
        EXAMPLES,
        FILE_SIZES,
        TASKS,
        check_task,
        list_tasks,
        load_task,
        name_variant,
        rebuild_task,
    )
    from exporter.tasks.task import NO_LIMITS, Limits, SplitSizes, TaskData, TaskSpec
    from exporter.tasks.tokenizer import Tokenizer

_HOME = {
    "DEFAULT_SIZES": "registry",
    "DataFileError": "lines",
    "EXAMPLES": "registry",
    "Example": "encoding",
    "FILE_SIZES": "registry",
    "Limits": "task",
    "NO_LIMITS": "task",
    "SplitSizes": "task",
    "TASKS": "registry",
    "TaskData": "task",
    "TaskSpec": "task",
    "Tokenizer": "tokenizer",
    "check_task": "registry",
    "is_file_task": "file",
    "list_tasks": "registry",
    "load_task": "registry",
    "name_variant": "registry",
    "read_task_file": "file",
    "rebuild_task": "registry",
}

__all__ = [
    "DEFAULT_SIZES",
    "EXAMPLES",
    "FILE_SIZES",
    "NO_LIMITS",
    "TASKS",
    "DataFileError",
    "Example",
    "Limits",
    "SplitSizes",
    "TaskData",
    "TaskSpec",
    "Tokenizer",
    "check_task",
    "is_file_task",
    "list_tasks",
    "load_task",
    "name_variant",
    "read_task_file",
    "rebuild_task",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: what reads figures alone needs no torch, which takes seconds to load."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporter.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"exporter.tasks.{_HOME[name]}"), name)
