"""The result of a measurement against a reference: its figures and verdict, and the same as JSON or as a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.bench.baseline import SCHEMA, Baseline, BatchRecord, GraphSize, describe_machine
from exporter.bench.proxies import Proxies
from exporter.bench.twin import strip_weights
from exporter.errors import RegressionError, UsageError
from exporter.escaping import escape_controls
from exporter.evidence.latency import Place

_MOST_SAID = 2


@dataclass(frozen=True)
class BatchResult:
    """One batch against one file: medians in seconds, the speed-up with its 95 % interval, the bar, and where it lies.

    `place` is `above` or `below` where the interval is clear of the bar, `across` where it is not, None without a
    bar. `against` is the file that it was measured against, `baseline.onnx` for the baseline's twin, and `reference`
    that file's proxies; these and what is measured are None where nothing was timed.
    """

    batch: int
    pos: int
    circuit: Proxies
    against: str | None = None
    reference: Proxies | None = None
    reference_seconds: float | None = None
    circuit_seconds: float | None = None
    speedup: float | None = None
    ci95: tuple[float, float] | None = None
    rounds: int = 0
    bar: float | None = None
    place: Place | None = None

    def to_record(self) -> BatchRecord:
        """As a baseline's record; raises UsageError when nothing was timed."""
        if self.reference is None or self.speedup is None or self.ci95 is None:
            raise UsageError("a baseline needs times and a reference; leave the gate 'proxies' out")
        return BatchRecord(
            batch=self.batch,
            pos=self.pos,
            speedup=round(self.speedup, 4),
            ci95=(round(self.ci95[0], 4), round(self.ci95[1], 4)),
            flops=self.circuit.flops,
            reference_flops=self.reference.flops,
        )


@dataclass(frozen=True)
class BenchReport:
    """What `run_bench` measured. `failures` are clauses, one for each bar that is missed; `notes` need no action.

    `prompts` are what it was timed on: the file's own examples, whose answers were checked, or random token ids.
    """

    model: str
    reference: str | None
    provider: Literal["cpu", "cuda"]
    threads: int
    prompts: Literal["examples", "random"]
    batches: tuple[BatchResult, ...]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able data, times in seconds."""
        return asdict(self)

    @property
    def error(self) -> RegressionError | None:
        """What to raise: it says what was measured, what was allowed and what to do; None where no bar is missed."""
        if not self.failures:
            return None
        return RegressionError(
            f"{escape_controls(Path(self.model).name)}: {_join(self.failures)};\nmake it faster, or allow it: {_REMEDY}"
        )

    def make_baseline(self) -> Baseline:
        """What was measured as a baseline; raises UsageError when nothing was."""
        records = tuple(result.to_record() for result in self.batches)
        first = self.batches[0]
        assert first.reference is not None
        information = describe_machine() | {"medians_ms": {str(r.batch): _medians(r) for r in self.batches}}
        return Baseline(
            schema=SCHEMA,
            provider=self.provider,
            threads=self.threads,
            circuit=GraphSize.of(first.circuit),
            reference=GraphSize.of(first.reference),
            batches=records,
            information=information,
            graph=strip_weights(self.model),
        )


_REMEDY = "a lower --min-speedup, a higher --max-regression, or --update-baseline"


def _join(failures: Sequence[str]) -> str:
    more = len(failures) - _MOST_SAID
    return "; ".join(failures[:_MOST_SAID]) + (f"; and {more} more" if more > 0 else "")


def _medians(result: BatchResult) -> dict[str, float]:
    times = {"reference": result.reference_seconds, "circuit": result.circuit_seconds}
    return {name: round(1e3 * seconds, 3) for name, seconds in times.items() if seconds is not None}
