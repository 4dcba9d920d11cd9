"""The lines at the top of a model card that the hub reads: what the model is for, and where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

from exporter.escaping import quote_yaml
from exporter.outputs.manifest import Manifest

_LICENCES = {"bundled": "apache-2.0", "openai-community/gpt2": "mit", "smollm2": "apache-2.0"}
_ON_THE_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # models that have another name there
_HUB_CACHE = re.compile(r"datasets--([\w.-]+?)--([\w.-]+)")  # the hub's cache names a folder after its data set


def render_front_matter(manifest: Manifest) -> str:
    """The block between dashes. Names of files and folders of the user's are never in it."""
    lines = [
        "library_name: onnx",
        f"pipeline_tag: {'text-classification' if manifest.export.labels else 'text-generation'}",
    ]
    found = {"license": find_licence(manifest.model.name), "base_model": find_base(manifest.model.name)}
    lines += [f"{key}: {quote_yaml(value)}" for key, value in found.items() if value is not None]
    if (dataset := find_dataset(manifest)) is not None:
        lines.append(f"datasets: [{quote_yaml(dataset)}]")
    lines.append("tags: [circuit, mechanistic-interpretability, export-circuit]")
    return "\n".join(["---", *lines, "---"])


def find_licence(name: str) -> str | None:
    """The licence of a dense model as the hub writes it: known by name, or said by the card in its folder."""
    if name in _LICENCES:
        return _LICENCES[name]
    card = Path(name) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    licence = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    return licence[1] if licence else None


def find_base(name: str) -> str | None:
    """The dense model's name on the hub; None of a folder or a file."""
    if name in _ON_THE_HUB:
        return _ON_THE_HUB[name]
    return name if "/" in name and not Path(name).exists() else None


def find_dataset(manifest: Manifest) -> str | None:
    """The name on the hub of the data set that a task's file is from; None where its path does not say."""
    found = _HUB_CACHE.search(str(manifest.task.parameters.get("path", "")))
    return None if found is None else f"{found[1]}/{found[2]}"
