"""Evaluate a circuit on prompts that no earlier stage has used: every metric, against the dense model.

This measures *faithfulness*; `exporter.verify` checks that the implementations of one circuit agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from exporter.checks import require_type
from exporter.errors import InputError
from exporter.evidence.figures import CalibrationError, Evaluation
from exporter.metrics import Answers, measure
from exporter.metrics.calibration import find_ece
from exporter.metrics.statistics import Accuracy, Paired, weighted_mean
from exporter.rewrite.replacements import CHUNK
from exporter.tasks.dataset import Dataset

AnswerLogits = Callable[[Tensor, Tensor | None, int], Tensor]
"""(prompt, pos) int64 token ids, their (prompt, pos) bool mask or None, and S, to logits at the last S positions,
(prompt, S, vocab). `CircuitModel.answer_logits` is one."""


@torch.inference_mode()
def measure_prompts(dense: AnswerLogits, circuit: AnswerLogits, dataset: Dataset) -> dict[str, Tensor]:
    """By metric: its value for each prompt, (prompt,) float64; computed in chunks.

    A prediction is the likeliest token, among the choices if the set has them; an answer of several tokens is right if
    all of them are.
    """

    def answer(part: Dataset) -> Answers:
        ours, theirs = (f(part.input_ids, part.mask, part.n_steps) for f in (circuit, dense))
        return Answers(part, ours, theirs)

    return measure(map(answer, dataset.split(CHUNK)))


def evaluate_circuit(dense: AnswerLogits, circuit: AnswerLogits, dataset: Dataset) -> Evaluation:
    """Compare two models on a set. Raises InputError: `dataset` is no Dataset, or a model is no plain function."""
    require_type("dataset", dataset, Dataset)
    for name, given in (("dense", dense), ("circuit", circuit)):
        if isinstance(given, nn.Module) or not callable(given):
            raise InputError(f"{name} must be a function such as model.answer_logits, not {type(given).__name__}")
    return summarise_values(measure_prompts(dense, circuit, dataset), dataset)


def summarise_values(values: Mapping[str, Tensor], dataset: Dataset) -> Evaluation:
    """The evaluation of a set, from what `measure_prompts` gives of it."""
    right = {"dense": values["reference_accuracy"], "circuit": values["accuracy"]}
    return Evaluation(
        n=len(dataset),
        dense=Accuracy.of_values(right["dense"]),
        circuit=Accuracy.of_values(right["circuit"]),
        kl=weighted_mean(values["kl"], dataset.counted.sum(dim=1)),  # over answers
        agreement=Accuracy.of_values(values["agreement"]).accuracy,
        metrics={name: float(of_prompts.mean()) for name, of_prompts in values.items()},
        ece=CalibrationError(
            dense=find_ece(values["reference_confidence"], right["dense"]),
            circuit=find_ece(values["confidence"], right["circuit"]),
        ),
        paired=Paired.of(right["dense"], right["circuit"]),
    )


@torch.inference_mode()
def evaluate_dense(answer_logits: AnswerLogits, dataset: Dataset) -> Accuracy:
    """The share of prompts on which one model's prediction is right."""
    parts = dataset.split(CHUNK)
    right = [part.is_answer(part.predict(answer_logits(part.input_ids, part.mask, part.n_steps))) for part in parts]
    return Accuracy.of_values(torch.cat(right))
