"""What an evaluation of two models finds: plain data, which needs no torch to be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from exporter.metrics.statistics import Accuracy, Paired


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error of both models, 0 to 1 (`exporter.metrics.calibration.find_ece`)."""

    dense: float
    circuit: float


@dataclass(frozen=True)
class Evaluation:
    """Dense model and circuit on the same n prompts.

    kl: KL(dense || circuit) in nats over the whole vocabulary, its mean over all answer positions. agreement: the share
    of prompts on which both predict the same tokens. metrics: by name, the mean over prompts of every metric in
    `METRICS`; those named `reference_...` are the dense model's. ece and paired are None in earlier manifests, which
    lack them.
    """

    n: int
    dense: Accuracy
    circuit: Accuracy
    kl: float
    agreement: float
    metrics: dict[str, float] = field(default_factory=dict)
    ece: CalibrationError | None = None
    paired: Paired | None = None
