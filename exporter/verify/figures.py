"""What the gates of a file find, as figures: plain data, which needs no torch to be read."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.metrics.statistics import Accuracy


@dataclass(frozen=True)
class Exactness:
    """Largest absolute differences of logits, the limit for both, and the number of prompts compared."""

    hooked_vs_rewritten: float
    rewritten_vs_onnx: float
    limit: float
    prompts: int


@dataclass(frozen=True)
class Mates:
    """How a prompt's batch-mates move its answer: n prompts in batches of one, and of `batch`.

    largest_difference: of logits, absolute. changed: share of prompts whose answer is another one. verdict_changed:
    share of prompts that are right in one of the two batches only.
    """

    n: int
    batch: int
    largest_difference: float
    changed: float
    verdict_changed: float


@dataclass(frozen=True)
class Served:
    """How a file answers n held-out prompts, compared with the circuit in fp32 over the same answers.

    agreement: share of prompts on which both give the same answer, right or wrong. same_verdict: share on which both
    are right or both wrong. largest_difference: the largest absolute difference of logits. kl: mean KL(circuit || file)
    over answer positions, in nats. same_verdict and kl are None in older manifests, which lack them. mates: what
    batch-mates change in int8; None in other precisions, and in older manifests.
    """

    n: int
    accuracy: Accuracy
    circuit_accuracy: float
    agreement: float
    largest_difference: float
    same_verdict: float | None = None
    kl: float | None = None
    mates: Mates | None = None


def describe_mates(mates: Mates) -> str:
    """What batch-mates change, as the end of a sentence."""
    return (
        f"alone and in batches of {mates.batch}: logits differ by at most {mates.largest_difference:.2g}, and "
        f"{mates.changed:.1%} of answers are others"
    )
