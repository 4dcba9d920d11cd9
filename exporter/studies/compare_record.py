"""What a comparison found, as plain data: points, the file that keeps them, and the sentences on who wins."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.files import read_json
from exporter.metrics.statistics import LEVEL, Accuracy, compute_mcnemar
from exporter.studies.contestants import OURS, REFERENCE

_SCHEMA = 1


@dataclass(frozen=True)
class Point:
    """One system of a contestant.

    parameters: without embeddings, unembedding and constants; held: numbers that the file or the classifier holds in
    all. right: `1` for each test prompt that it answers rightly, else `0`. unseen: accuracy by set. seconds: to make
    it. latency_ms: of a call on one prompt; speedup: how many times as fast as the dense model's file, measured in
    alternating blocks, with its 95 % bootstrap interval.
    """

    contestant: str
    name: str
    budget: str
    parameters: int
    held: int
    right: str
    unseen: Mapping[str, Accuracy]
    seconds: float
    latency_ms: float
    speedup: float
    speedup_ci95: tuple[float, float]

    @property
    def test(self) -> Accuracy:
        """Accuracy on the test set, with its Wilson interval."""
        return Accuracy.of(self.right.count("1"), len(self.right))

    @property
    def marks(self) -> Tensor:
        """`right` as numbers: (prompt,) float64."""
        return torch.tensor([float(mark) for mark in self.right], dtype=torch.float64)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data, with the accuracy on the test set."""
        return asdict(self) | {"test": asdict(self.test) | {"n": len(self.right)}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """From what `to_json` gave. Raises KeyError, TypeError, ValueError: it is something else."""
        values = {name: data[name] for name in cls.__dataclass_fields__}
        unseen = {name: Accuracy(found["accuracy"], tuple(found["ci95"])) for name, found in data["unseen"].items()}
        return cls(**values | {"unseen": unseen, "speedup_ci95": tuple(data["speedup_ci95"])})


@dataclass(frozen=True)
class Result:
    """What became of a contestant; note: why it made no more than it did."""

    points: tuple[Point, ...]
    note: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Contestants on one task, on one machine.

    key: all that the points depend on; results are kept for as long as it is the same. form: how networks were called.
    """

    key: Mapping[str, Any]
    machine: Mapping[str, Any]
    prompts: Mapping[str, int]
    form: str
    results: Mapping[str, Result] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """All points."""
        return [point for result in self.results.values() for point in result.points]

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data, with the sentences."""
        return {
            "schema": _SCHEMA,
            "key": dict(self.key),
            "machine": dict(self.machine),
            "prompts": dict(self.prompts),
            "form": self.form,
            "sentences": judge(self.points),
            "contestants": {
                name: {"note": result.note, "points": [point.to_json() for point in result.points]}
                for name, result in self.results.items()
            },
        }

    def to_csv(self) -> str:
        """A line for each point; accuracies and their bounds are shares."""
        unseen = list(dict.fromkeys(name for point in self.points for name in point.unseen))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["contestant", "name", "parameters", "held", "accuracy", "low", "high", *(f"unseen {n}" for n in unseen),
             "latency_ms", "speedup", "speedup_low", "speedup_high", "seconds", "budget"]
        )  # fmt: skip
        for p in self.points:
            others = [f"{p.unseen[name].accuracy:.4f}" if name in p.unseen else "" for name in unseen]
            shares = [f"{share:.4f}" for share in (p.test.accuracy, *p.test.ci95)]
            times = [f"{time:.4g}" for time in (p.latency_ms, p.speedup, *p.speedup_ci95, p.seconds)]
            writer.writerow([p.contestant, p.name, p.parameters, p.held, *shares, *others, *times, p.budget])
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the JSON file; it is the old one or the new one, never a part of it."""
        write_whole(path, json.dumps(self.to_json(), indent=1) + "\n")

    def read_results(self, path: Path) -> dict[str, Result]:
        """The contestants of an earlier run of the same comparison; none where there is no file.

        Raises InputError: the file is of something else, or of another comparison.
        """
        if not path.exists():
            return {}
        try:
            data = read_json(path)
            key, contestants = data["key"], data["contestants"]
            results = {
                name: Result(tuple(map(Point.from_json, found["points"])), found["note"])
                for name, found in contestants.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is no comparison that can be gone on with; give another --out") from error
        differing = [name for name in self.key if not isinstance(key, Mapping) or key.get(name) != self.key[name]]
        if differing:
            raise InputError(
                f"{path} is a comparison with another {differing[0]}; give another --out, or --force to start over"
            )
        return results


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name, then rename it."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def judge(points: list[Point]) -> list[str]:
    """Where a baseline does as well as ours at no more time or size, a sentence for each contestant that does."""
    ours = next((point for point in points if point.name == OURS[0]), None)
    if ours is None:
        return ["Nothing is said of who wins: the default job of ours is not among the points."]
    others = [point for point in points if point.contestant not in (*OURS, REFERENCE)]
    said: dict[str, tuple[int, str]] = {}
    for point in others:
        p = compute_mcnemar(ours.marks, point.marks)
        faster, smaller = point.speedup >= ours.speedup, point.held <= ours.held
        if (point.test.accuracy < ours.test.accuracy and p < LEVEL) or not (faster or smaller):
            continue
        how = "wins" if faster and smaller else "is faster, but larger," if faster else "is smaller, but slower,"
        sentence = (
            f"{point.name} {how} and no less accurate than ours: {point.test.accuracy:.1%} against "
            f"{ours.test.accuracy:.1%} (McNemar's p = {p:.2g}), {point.latency_ms:.3g} against {ours.latency_ms:.3g} "
            f"ms ({point.speedup:.3g} and {ours.speedup:.3g} times as fast as the dense model), {point.held:,} against "
            f"{ours.held:,} numbers held."
        )
        rank = faster + smaller
        if rank > said.get(point.contestant, (0, ""))[0]:
            said[point.contestant] = rank, sentence
    if not said:
        return ["No baseline is as accurate as ours in as little time, or with as few parameters."] if others else []
    return [sentence for _, sentence in sorted(said.values(), key=lambda found: -found[0])]
