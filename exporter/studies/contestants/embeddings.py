"""Static embeddings: the mean of the dense model's token embeddings, and logistic regression on it, with no layer."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.studies.contestants.pooled import fit_pooled
from exporter.studies.contestants.study import Candidate, Study


def pool_embeddings(study: Study) -> Iterator[Candidate]:
    """The classifier of `pooled` before the first layer: a table of the task's tokens, a norm and a matrix."""
    return fit_pooled(study, (0,))
