"""What a server counts, in a registry of its own, for Prometheus to read."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

PREFIX = "export_circuit"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms; `model` is the served model's id."""

    def __init__(self, model: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # resident memory, processor seconds, open files
        Info(f"{PREFIX}_model", "What is served.", registry=registry).info({"id": model})
        self._requests = Counter(
            f"{PREFIX}_requests", "Requests for predictions by HTTP status.", ["status"], registry=registry
        )
        self._refusals = Counter(f"{PREFIX}_refusals", "Refused requests by code.", ["code"], registry=registry)
        self._prompts = Counter(f"{PREFIX}_prompts", "Answered prompts by model.", ["source"], registry=registry)
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From a request to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            f"{PREFIX}_batch_prompts",
            "Prompts in a call.",
            ["source"],
            buckets=_SIZES,
            registry=registry,
        )
        self._queue = Gauge(f"{PREFIX}_queue_prompts", "Prompts that wait for a call.", registry=registry)

    def count_request(self, status: int, seconds: float) -> None:
        """One request for predictions has ended."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def count_refusal(self, code: str) -> None:
        """One request was refused, with this code."""
        self._refusals.labels(code).inc()

    def count_prompts(self, source: str, n: int) -> None:
        """So many prompts were answered by the circuit or the dense model."""
        self._prompts.labels(source).inc(n)

    def watch_batches(self, source: str) -> Callable[[int], None]:
        """A function that is told of the size of each call."""
        return self._batch.labels(source).observe

    def watch_queue(self, count: Callable[[], int]) -> None:
        """The function that says how many prompts wait."""
        self._queue.set_function(count)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
