"""What runs of the suite leave, as plain data: from pytest-benchmark's JSON, merged, to results/inference.json.

    {"machine": {...}, "date", "versions",
     "cases": {case: what is in it},
     "gemm": [...], "bandwidth": [...],
     "latency": [{"case", "contestant", "provider", "batch", "threads", "p50_ms", ...}],
     "footprint": [{"case", "contestant", "provider", "bytes", "nodes", "session_ms", ...}]}

Runs may measure some cases each; what a later one measured again replaces the earlier figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Results = dict[str, Any]
_KEYS = {  # what tells two records of one kind apart
    "gemm": ("precision", "threads"),
    "bandwidth": ("threads",),
    "latency": ("case", "provider", "threads", "batch", "contestant"),
    "footprint": ("case", "provider", "contestant"),
}


def read_runs(paths: Iterable[str | Path]) -> Results:
    """Merge the JSON files of some runs, in order. Raises ValueError when they are from different machines."""
    merged: Results = {"cases": {}, **{kind: {} for kind in _KEYS}}
    for path in paths:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
        machine = dict(run["machine_info"]["export_circuit"])
        merged["versions"] = machine.pop("versions")
        machine.pop("optimum")
        if merged.setdefault("machine", machine) != machine:
            raise ValueError(f"{path} was measured on {machine}, the runs before it on {merged['machine']}")
        merged["date"] = run["datetime"][:10]
        for entry in run["benchmarks"]:
            _add(merged, dict(entry["extra_info"]), entry["stats"])
    return merged | {kind: list(merged[kind].values()) for kind in _KEYS}


def _add(merged: Results, record: Record, stats: Record) -> None:
    kind = record.pop("kind", None)
    if kind is None:
        return  # another suite's
    if "describes" in record:
        merged["cases"][record["case"]] = record.pop("describes")
    if kind == "latency":
        record["alone_ms"] = round(1e3 * stats["median"], 4)
    merged[kind][tuple(record[name] for name in _KEYS[kind])] = record


def find(records: Iterable[Record], **wanted: Any) -> Record | None:
    """The one record with these values; None when it was not measured."""
    found = [r for r in records if all(r[name] == value for name, value in wanted.items())]
    assert len(found) <= 1, wanted
    return found[0] if found else None


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records with these values."""
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]
