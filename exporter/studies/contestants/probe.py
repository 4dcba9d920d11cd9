"""Linear probes: the first k layers of the dense model, and logistic regression on the residual at the answer position.

The probe's rows take the place of the unembedding, behind the dense model's final norm; so the truncated model with its
probe is exported like any other network. An intercept becomes a bias of the norm; an RMSNorm has none, and so has its
probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.evidence.bag_of_words import can_learn, make_folds, name_classes
from exporter.network.model import CircuitModel
from exporter.network.norm import Norm
from exporter.rewrite.replacements import CHUNK
from exporter.search.cost import group_by_layer
from exporter.studies.contestants.study import Candidate, Study
from exporter.studies.contestants.systems import NetworkSystem
from exporter.tasks.dataset import Dataset

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # the inverse of the penalty, on standardised features
MOST_TUNED = 1000  # prompts that layers and strengths are compared on


def probe_layers(study: Study) -> Iterator[Candidate]:
    """The probe of each layer whose cross-validated accuracy is higher than that of every layer before it."""
    if study.data.test.n_steps > 1:
        raise InputError("a linear probe answers with one token, and this task has answers of several")
    labels = name_classes(study.labelled)
    if not can_learn(labels):
        raise InputError("one answer is right for all prompts, or there are too few: there is nothing to probe")
    if len(set(labels)) > study.dense.W_U.shape[1]:
        raise InputError(f"{len(set(labels))} answers are more than the model is wide; a probe's bias cannot tell them")
    layers, best = group_by_layer(study.dense.steps), 0.0
    states = [read_residuals(study.dense, part) for part in study.labelled]
    residuals = torch.cat(states, dim=1)  # (layer, prompt, d_model)
    for depth in range(1, len(layers) + 1):
        has_bias = not study.dense.final_norm.rms
        share, strength = tune(residuals[depth - 1, :MOST_TUNED].numpy(), labels[:MOST_TUNED], has_bias)
        if share <= best:
            continue
        best = share
        classes, W, b = fit_rows(residuals[depth - 1].numpy(), labels, strength, has_bias)
        tokens = [int(name) for name in classes]
        model = attach_probe(study.dense, depth, tokens, W, b)
        options = replace(study.plan.options, logits="answers", answer_ids=tuple(tokens))
        budget = (
            f"{len(labels):,} labelled prompts; C of {len(STRENGTHS)} by cross-validation ({share:.1%}); "
            f"only layers that beat all before them"
        )
        yield Candidate(f"probe after layer {depth}", NetworkSystem(model, options, tokens), budget)


@torch.no_grad()
def read_residuals(dense: CircuitModel, prompts: Dataset) -> Tensor:
    """The last position's residual after each layer, behind the final norm: (layer, prompt, d_model)."""
    found = []
    for part in prompts.split(CHUNK):
        at = dense.place(part.input_ids, part.mask)
        x, after = dense.embed(part.input_ids, at), []
        for layer in group_by_layer(dense.steps):
            for step in layer:
                x = step.load()(x, at)
            after.append(dense.final_norm(x[:, -1].to(dense.W_U.device)))
        found.append(torch.stack(after))
    return torch.cat(found, dim=1)


def tune(features: Any, labels: Sequence[str], has_bias: bool) -> tuple[float, float]:
    """The best cross-validated accuracy over the strengths, and the strength that has it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(
        StandardScaler(with_mean=has_bias), LogisticRegression(max_iter=300, fit_intercept=has_bias)
    )
    folds = PredefinedSplit(make_folds(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers that stop early
        found = GridSearchCV(pipeline, {"logisticregression__C": list(STRENGTHS)}, cv=folds, refit=False)
        found.fit(features, labels)
    return float(found.best_score_), float(found.best_params_["logisticregression__C"])


def fit_rows(
    features: Any, labels: Sequence[str], strength: float, has_bias: bool
) -> tuple[list[str], Tensor, Tensor | None]:
    """Classes, (class, d_model) rows and (class,) intercepts, if any, of logistic regression on raw features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=has_bias).fit(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(max_iter=1000, C=strength, fit_intercept=has_bias)
        fitted = model.fit(scaler.transform(features), labels)
    rows, intercepts = torch.tensor(fitted.coef_).double(), torch.tensor(fitted.intercept_).double()
    if len(rows) == 1:  # of two classes there is a row for the second alone
        rows, intercepts = torch.cat([-rows, rows]) / 2, torch.cat([-intercepts, intercepts]) / 2
    W = rows / torch.tensor(scaler.scale_)
    b = intercepts - W @ torch.tensor(scaler.mean_) if has_bias else None
    return [str(name) for name in fitted.classes_], W, b


def attach_probe(
    dense: CircuitModel, depth: int, tokens: Sequence[int], W: Tensor, b: Tensor | None = None
) -> CircuitModel:
    """The first layers of a model, with rows for some tokens in the place of the unembedding: logits are those of W, b.

    Logits of a softmax may be shifted together, so rows and intercepts are centred: then the rows reach every vector of
    intercepts that they have to, and a bias of the final norm can carry it.
    """
    W, norm, like = W - W.mean(dim=0), dense.final_norm, dense.W_U
    bias = norm.bias
    if b is not None:
        assert not norm.rms, "has no bias"
        shift = torch.linalg.lstsq(W, (b - b.mean())[:, None], driver="gelsd").solution[:, 0]
        bias = (shift if norm.bias is None else shift + norm.bias.double()).to(like)
    W_U = torch.zeros_like(like)
    W_U[list(tokens)] = W.to(like)
    steps = [step for layer in group_by_layer(dense.steps)[:depth] for step in layer]
    final_norm = Norm(norm.weight, bias, eps=norm.eps, rms=norm.rms)
    return dense.replace(steps=steps, W_U=W_U, final_norm=final_norm)
