"""A latency baseline: what a circuit's speed was, in numbers that hold on another machine.

Times do not travel. What does is the *graph*, from which a twin of the model is built that costs what the model cost
(`twin`): a later model is timed beside it, within an allowance. And the *proxies* (nodes, FLOPs, bytes, parameters)
are counted, so a growth beyond the same allowance fails without any doubt; other changes, which a newer exporter or
search brings, are reported and fail nothing. The speed-up over a reference, the machine, versions and times are
written down for people and not compared: the speed-up over a larger model moves with the machine.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from exporter.bench.options import MOST_PROMPTS, MOST_TOKENS
from exporter.bench.proxies import Proxies
from exporter.errors import InputError
from exporter.files import OutputSet, read_json

SCHEMA: Literal[1] = 1
_REMEDY = "write a new one with --update-baseline"


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphSize(_Plain):
    """The proxies that do not depend on what comes in; see `proxies.Proxies`."""

    nodes: int = Field(ge=0)
    parameters: int = Field(ge=0)
    weight_bytes: int = Field(ge=0)
    file_bytes: int = Field(ge=0)

    @classmethod
    def of(cls, proxies: Proxies) -> GraphSize:
        """Of a file's proxies."""
        return cls(**{name: getattr(proxies, name) for name in cls.model_fields})


class BatchRecord(_Plain):
    """One batch of `pos` tokens a prompt: the speed-up with its 95 % interval, and both graphs' FLOPs."""

    batch: int = Field(gt=0, le=MOST_PROMPTS)
    pos: int = Field(gt=0, le=MOST_TOKENS)
    speedup: float = Field(gt=0, allow_inf_nan=False)
    ci95: tuple[FiniteFloat, FiniteFloat]
    flops: NonNegativeInt | None
    reference_flops: NonNegativeInt | None


class Baseline(_Plain):
    """A committed record of one circuit. `graph` is what its twin is built from (`twin`), and what times are compared
    with; the speed-up over `reference` and `information` are for people."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    provider: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    circuit: GraphSize
    reference: GraphSize
    batches: tuple[BatchRecord, ...] = Field(min_length=1)
    information: dict[str, Any]
    graph: str

    def find_batch(self, batch: int, pos: int) -> BatchRecord:
        """The record of this batch; raises InputError where there is none."""
        for record in self.batches:
            if (record.batch, record.pos) == (batch, pos):
                return record
        recorded = ", ".join(f"{record.batch} x {record.pos} tokens" for record in self.batches)
        raise InputError(f"the baseline has no batch of {batch} x {pos} tokens, only {recorded}; {_REMEDY}")

    def merge(self, older: Baseline) -> Baseline:
        """This one with the batches of an older one that it lacks, where that is of the same graphs and settings."""
        same = ("provider", "threads", "circuit", "reference")
        if any(getattr(self, name) != getattr(older, name) for name in same):
            return self
        records = {(r.batch, r.pos): r for r in (*older.batches, *self.batches)}
        return self.model_copy(update={"batches": tuple(records[key] for key in sorted(records))})

    def to_json(self) -> str:
        """The text of the file: one line a number, so that a difference is easily read."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Baseline:
        """Read and check a baseline file; raises InputError that names what is wrong."""
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise InputError(f"no baseline {str(path)!r}; {_REMEDY}") from None
        except OSError as error:
            raise InputError(f"cannot read the baseline {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"the baseline {path} is not JSON ({str(error)[:80]}); {_REMEDY}") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA}; upgrade export-circuit")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise InputError(f"{path} is no latency baseline: {field}: {first['msg']}; {_REMEDY}") from error

    def save(self, path: str | Path) -> None:
        """Write it in one step; other batches of what stands there stay (see `merge`). Raises InputError."""
        older = read_replaceable(path)
        merged = self if older is None else self.merge(older)
        with OutputSet(path, suffixes=(".json",), force=True) as output:
            output.path(".json").write_text(merged.to_json(), encoding="utf-8")
            output.commit()


def read_replaceable(path: str | Path) -> Baseline | None:
    """The baseline that stands where one is to be written, None where nothing does.

    Raises InputError where something else stands there, or where nothing can.
    """
    path = Path(path)
    if path.suffix != ".json" or not path.parent.is_dir():
        raise InputError(f"cannot write a baseline to {str(path)!r}; give a name that ends in .json, in a folder")
    if not os.path.lexists(path):
        return None
    try:
        return Baseline.load(path)
    except InputError as error:
        reason = str(error).removesuffix(f"; {_REMEDY}")
        raise InputError(f"{reason}; it is not overwritten: move it away, or choose another --baseline") from error


@dataclass(frozen=True)
class Change:
    """One proxy that is no longer what it was; growth is a share, infinite where it can no longer be counted."""

    text: str
    growth: float


def compare_proxies(baseline: Baseline, record: BatchRecord, now: Proxies) -> Iterator[Change]:
    """What has changed of a circuit's proxies since its baseline."""
    old = baseline.circuit.model_dump() | {"flops": record.flops}
    for name, label in _LABELS.items():
        then, here = old[name], getattr(now, name)
        if then is None or then == here:
            continue
        if here is None:
            yield Change(f"{label} that cannot be counted any more, {then:,} in the baseline", math.inf)
        else:
            growth = here / max(then, 1) - 1
            yield Change(f"{here:,} {label}, {then:,} in the baseline ({growth:+.1%})", growth)


_LABELS = {
    "nodes": "nodes",
    "flops": "FLOPs",
    "weight_bytes": "bytes of weights",
    "file_bytes": "bytes of file",
    "parameters": "parameters",
}


def describe_machine() -> dict[str, Any]:
    """What a baseline was measured on, for people: processor, cores, versions, date."""
    versions = {"python": platform.python_version()}
    for package in ("export-circuit", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _read_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "versions": versions,
    }


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
