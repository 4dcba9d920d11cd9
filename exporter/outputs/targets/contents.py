"""Write what targets put into a bundle; where several write one JSON file, the keys of all, the last one's first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from exporter.outputs.targets.target import Content, Contents


def write_contents(folder: Path, contents: Iterable[Contents]) -> None:
    """Write them all, folders included."""
    merged: Contents = {}
    for of_target in contents:
        for name, content in of_target.items():
            merged[name] = _merge(name, merged[name], content) if name in merged else content
    for name, content in merged.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(content))


def _merge(name: str, first: Content, second: Content) -> Content:
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        assert first == second, f"two targets write different files {name}"
        return first
    return {**first, **second}


def _encode(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    return text.encode("utf-8")
