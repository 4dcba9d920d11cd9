"""Files of a bundle by who reads them. A new reader is a file here and a line in TARGETS."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.checks import take_items
from exporter.errors import InputError, UsageError
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.c import C_TARGET
from exporter.outputs.targets.genai import GENAI_TARGET
from exporter.outputs.targets.optimum import OPTIMUM
from exporter.outputs.targets.runner import ONNXRUNTIME
from exporter.outputs.targets.target import BundleTarget, GraphFile
from exporter.outputs.targets.transformers_js import TRANSFORMERS_JS
from exporter.outputs.targets.triton import TRITON

TARGETS: dict[str, BundleTarget] = {
    "onnxruntime": ONNXRUNTIME,
    "optimum": OPTIMUM,
    "genai": GENAI_TARGET,
    "transformers-js": TRANSFORMERS_JS,
    "triton": TRITON,
    "c": C_TARGET,
}
ALWAYS = "onnxruntime"  # run.py shows that a bundle works: every one has it
DEFAULT = ("onnxruntime", "optimum", "genai")

__all__ = [
    "ALWAYS",
    "DEFAULT",
    "TARGETS",
    "BundleTarget",
    "GraphFile",
    "choose_targets",
    "fit_targets",
    "take_targets",
]


def take_targets(names: Iterable[str]) -> tuple[str, ...]:
    """The names of targets in the registry's order, each once. Raises UsageError for an unknown one."""
    names = take_items("targets", names)
    if unknown := [name for name in names if name not in TARGETS]:
        raise UsageError(f"unknown target {unknown[0]!r:.60}; choose from {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in names)


def choose_targets(named: Iterable[str]) -> dict[str, BundleTarget]:
    """The targets of a bundle for which these were named: what every bundle has, and those; by default `DEFAULT`."""
    chosen = {ALWAYS, *(tuple(named) or DEFAULT)}
    return {name: target for name, target in TARGETS.items() if name in chosen}


def fit_targets(shape: BundleShape, named: Iterable[str], *, strict: bool) -> tuple[dict[str, BundleTarget], list[str]]:
    """The same without those that do not take the model, which notes name with the reason.

    Raises InputError, if `strict`, for the first that the user named and that does not take it.
    """
    named, chosen, notes = tuple(named), choose_targets(named), []
    for name in named:
        if (reason := chosen[name].refuse(shape)) is None:
            continue
        if strict:
            raise InputError(f"--for {name} {reason}")
        notes.append(f"not for {name}: it {reason}")
        del chosen[name]
    return chosen, notes
