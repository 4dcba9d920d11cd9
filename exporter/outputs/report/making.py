"""How the circuit was made: what it came from, what was searched, and the command that does it again."""

from __future__ import annotations

import json
from dataclasses import dataclass

from exporter.outputs.manifest import Manifest
from exporter.outputs.report.words import write_bytes


@dataclass(frozen=True)
class Making:
    """Facts as pairs of name and text, files as (name, size, sha256), seconds by stage, and the command."""

    command: str | None
    facts: list[tuple[str, str]]
    files: list[tuple[str, str, str]]
    seconds: list[tuple[str, str]]
    versions: list[tuple[str, str]]


def describe_making(manifest: Manifest) -> Making:
    """How a manifest's circuit was made."""
    model, record, onnx = manifest.model, manifest.get_record(), manifest.onnx
    revision = "" if model.revision is None else f", revision {model.revision}"
    ablation = manifest.get_circuit().ablation
    inputs = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in onnx.inputs.items())
    facts = [
        ("Original", f"{model.name} ({model.family}){revision}"),
        ("Its weights", f"sha256 {model.sha256}"),
        ("Task", manifest.task.name),
        ("Parameters of the task", json.dumps(manifest.task.parameters)),
        ("Prompts", f"sha256 {manifest.task.sha256}"),
        ("Search", record.search),
        ("Ablation", ablation.kind if ablation.kind == "zero" else f"{ablation.kind}, by {ablation.by}"),
        ("Weights", record.weights),
        ("Graph", f"opset {onnx.opset}, IR {onnx.ir_version}, {onnx.nodes} nodes, {manifest.export.precision}"),
        ("Inputs", inputs),
    ]
    return Making(
        command=manifest.command,
        facts=facts,
        files=[(name, write_bytes(file.bytes), file.sha256) for name, file in manifest.files.items()],
        seconds=[(name, f"{seconds:.1f} s") for name, seconds in manifest.seconds.items()],
        versions=list(manifest.versions.items()),
    )
