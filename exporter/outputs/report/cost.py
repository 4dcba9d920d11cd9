"""What the circuit costs to run, against the dense model exported the same way."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.outputs.manifest import Manifest
from exporter.outputs.report.words import write_bytes, write_short, write_time


@dataclass(frozen=True)
class Pair:
    """A quantity of both models: as text, and as bars of 0 to 1 (the larger one is 1)."""

    name: str
    dense: str
    circuit: str
    dense_bar: float
    circuit_bar: float
    ratio: str
    interval: str


@dataclass(frozen=True)
class Cost:
    """Latency by batch size, then sizes; `threads` of the measurement, None without one."""

    pairs: list[Pair]
    threads: int | None
    has_memory: bool


def draw_cost(manifest: Manifest) -> Cost:
    """The costs that a manifest has."""
    pairs = [
        _pair(
            f"Latency, batch {timed.batch}",
            timed.dense,
            timed.circuit,
            (write_time(timed.dense), write_time(timed.circuit)),
            ratio=timed.speedup,
            interval=f"{timed.speedup_ci95[0]:.3g} to {timed.speedup_ci95[1]:.3g}",
        )
        for timed in manifest.latency
    ]
    pairs += [
        _pair(
            f"Peak memory, batch {peak.batch}",
            peak.dense,
            peak.circuit,
            (write_bytes(peak.dense), write_bytes(peak.circuit)),
        )
        for peak in manifest.memory
    ]
    size = manifest.size
    pairs.append(
        _pair(
            "Parameters, embeddings apart",
            size.dense,
            size.circuit,
            (write_short(size.dense), write_short(size.circuit)),
        )
    )
    n_bytes = sum(file.bytes for name, file in manifest.files.items() if name.endswith((".onnx", ".data")))
    if manifest.dense_onnx_bytes:
        both = (write_bytes(manifest.dense_onnx_bytes), write_bytes(n_bytes))
        pairs.append(_pair("ONNX file and its weights", manifest.dense_onnx_bytes, n_bytes, both))
    return Cost(pairs, manifest.latency[0].threads if manifest.latency else None, bool(manifest.memory))


def _pair(
    name: str, dense: float, circuit: float, texts: tuple[str, str], *, ratio: float | None = None, interval: str = ""
) -> Pair:
    largest = max(dense, circuit) or 1
    if ratio is None:
        ratio = dense / circuit if circuit else 0.0
    bars = (round(dense / largest, 4), round(circuit / largest, 4))
    return Pair(name, *texts, *bars, f"{ratio:.3g} ×" if ratio else "", interval)
