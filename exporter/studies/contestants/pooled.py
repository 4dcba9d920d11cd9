"""Sentence embeddings: the mean over positions of the dense model's first k layers, and logistic regression on it.

The classifier's rows take the place of the unembedding. They are linear, and so the mean over positions of their logits
is the classifier's logits of the mean residual: the truncated model is exported with logits at every position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter.bench.proxies import count_proxies
from exporter.errors import InputError
from exporter.evidence.bag_of_words import can_learn, name_classes
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import CHUNK
from exporter.runtime.session import open_session, run_logits
from exporter.search.cost import group_by_layer
from exporter.studies.contestants.probe import MOST_TUNED, STRENGTHS, attach_probe, fit_rows, tune
from exporter.studies.contestants.study import Candidate, Study
from exporter.studies.contestants.systems import Built
from exporter.tasks.dataset import Dataset


@dataclass(frozen=True, eq=False)
class PooledSystem:
    """A network whose logits, one for each of `tokens`, are averaged over a prompt's positions."""

    model: CircuitModel
    options: GraphOptions
    tokens: Sequence[int]
    n_vocab: int

    @property
    def parameters(self) -> int:
        """As a manifest's `size` counts them."""
        return self.model.count_parameters()

    @torch.no_grad()
    def mark(self, prompts: Dataset) -> Tensor:
        """See `System`."""
        found = []
        for part in prompts.split(CHUNK):
            logits = average(self.model(part.input_ids, part.mask), part)  # (prompt, class)
            by_token = logits.new_full((len(part), 1, self.n_vocab), -torch.inf)
            by_token[:, 0, list(self.tokens)] = logits
            found.append(part.is_answer(part.predict(by_token)))
        return torch.cat(found)

    def build(self, folder: Path, prompts: Dataset, threads: int) -> Built:
        """See `System`."""
        path = folder / "network.onnx"
        export_onnx(fold_model(self.model), path, self.options)
        session, prompt = open_session(path, threads=threads), prompts[:1]
        ids, mask = prompt.input_ids.numpy(), None if prompt.mask is None else prompt.mask.numpy()

        def call() -> Any:
            logits = run_logits(session, ids, mask)
            return logits.mean(axis=1) if mask is None else np.average(logits[0], axis=0, weights=mask[0])

        return Built(call, count_proxies(path).parameters)


def pool_layers(study: Study) -> Iterator[Candidate]:
    """The mean after each layer whose cross-validated accuracy is higher than that of every layer before it."""
    return fit_pooled(study, range(1, len(group_by_layer(study.dense.steps)) + 1))


def fit_pooled(study: Study, depths: Iterable[int]) -> Iterator[Candidate]:
    """The same after each of some numbers of layers; 0 is the embeddings alone. Raises InputError as probes do."""
    if study.data.test.n_steps > 1:
        raise InputError("a classifier of means answers with one token, and this task has answers of several")
    labels = name_classes(study.labelled)
    if not can_learn(labels):
        raise InputError("one answer is right for all prompts, or there are too few: there is nothing to learn")
    if len(set(labels)) > study.dense.W_U.shape[1]:
        raise InputError(f"{len(set(labels))} answers are more than the model is wide; a bias cannot tell them")
    best, has_bias = 0.0, not study.dense.final_norm.rms
    means = torch.cat([read_means(study.dense, part) for part in study.labelled], dim=1)  # (depth, prompt, d_model)
    for depth in depths:
        features = means[depth].numpy()
        share, strength = tune(features[:MOST_TUNED], labels[:MOST_TUNED], has_bias)
        if share <= best:
            continue
        best = share
        classes, W, b = fit_rows(features, labels, strength, has_bias)
        tokens = [int(name) for name in classes]
        whole = attach_probe(study.dense, depth, tokens, W, b)
        model = whole.replace(W_U=whole.W_U[tokens])  # a logit for each class
        options = replace(study.plan.options, logits="all", answer_ids=(), opening=())
        name = f"mean after layer {depth}" if depth else "mean of the embeddings"
        budget = f"{len(labels):,} labelled prompts; C of {len(STRENGTHS)} by cross-validation ({share:.1%})"
        yield Candidate(name, PooledSystem(model, options, tokens, len(study.dense.W_E)), budget)


@torch.no_grad()
def read_means(dense: CircuitModel, prompts: Dataset) -> Tensor:
    """The mean over positions of the residual behind the final norm: (depth, prompt, d_model), embeddings first."""
    found = []
    for part in prompts.split(CHUNK):
        at = dense.place(part.input_ids, part.mask)
        x = dense.embed(part.input_ids, at)
        after = [average(dense.final_norm(x.to(dense.W_U.device)), part)]
        for layer in group_by_layer(dense.steps):
            for step in layer:
                x = step.load()(x, at)
            after.append(average(dense.final_norm(x.to(dense.W_U.device)), part))
        found.append(torch.stack(after))
    return torch.cat(found, dim=1)


def average(values: Tensor, prompts: Dataset) -> Tensor:
    """The mean over each prompt's positions, padding left out: (prompt, pos, n) to (prompt, n)."""
    if prompts.mask is None:
        return values.mean(dim=1)
    weights = prompts.mask.to(values)
    return (values * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
