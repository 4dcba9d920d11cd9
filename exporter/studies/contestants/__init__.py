"""The contestants of a comparison: what a user would do instead, and ours. A new one is a file and a line here."""

from collections.abc import Iterator

from exporter.studies.contestants.cuts import cut_at_random, cut_by_magnitude, cut_by_taylor
from exporter.studies.contestants.embeddings import pool_embeddings
from exporter.studies.contestants.pooled import pool_layers
from exporter.studies.contestants.probe import probe_layers
from exporter.studies.contestants.searched import search_healed, search_unhealed, sweep_alphas
from exporter.studies.contestants.student import distil_students
from exporter.studies.contestants.study import Candidate, Contestant, Study
from exporter.studies.contestants.text import fit_logistic, fit_svm


def keep_all(study: Study) -> Iterator[Candidate]:
    """The dense model as it is."""
    yield Candidate("dense", study.wrap(study.dense), "none")


CONTESTANTS: dict[str, Contestant] = {
    "dense": keep_all,
    "ours": search_healed,
    "ours-unhealed": search_unhealed,
    "tfidf-logistic": fit_logistic,
    "tfidf-svm": fit_svm,
    "embeddings": pool_embeddings,
    "probe": probe_layers,
    "pooled": pool_layers,
    "student": distil_students,
    "magnitude": cut_by_magnitude,
    "taylor": cut_by_taylor,
    "random": cut_at_random,
    "paper": sweep_alphas,
}

OURS = ("ours", "ours-unhealed")
REFERENCE = "dense"

__all__ = ["CONTESTANTS", "OURS", "REFERENCE", "Candidate", "Contestant", "Study"]
