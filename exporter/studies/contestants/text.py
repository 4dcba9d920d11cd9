"""A bag of words: TF-IDF with a linear classifier, its hyper-parameters chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.errors import InputError
from exporter.evidence.bag_of_words import FOLDS, Classifier, fit_text
from exporter.studies.contestants.study import Candidate, Study
from exporter.studies.contestants.systems import TextSystem


def fit_logistic(study: Study) -> Iterator[Candidate]:
    """TF-IDF with logistic regression."""
    yield _fit(study, "tfidf-logistic", "logistic")


def fit_svm(study: Study) -> Iterator[Candidate]:
    """TF-IDF with a linear support vector machine."""
    yield _fit(study, "tfidf-svm", "svm")


def _fit(study: Study, name: str, kind: Classifier) -> Candidate:
    if not (sets := study.labelled):
        raise InputError("no patching or selection prompt has a right answer to learn from")
    text = fit_text(sets, study.tokenizer, kind)
    if not text.settings:
        spent = "the commonest answer, whatever the text: one answer is right for all prompts, or there are too few"
    else:
        span = "-".join(map(str, text.settings["tfidf__ngram_range"]))
        unit = {"word": "words", "char_wb": "letters"}[text.settings["tfidf__analyzer"]]
        strength = text.settings["classify__C"]
        spent = f"{FOLDS}-fold cross-validation of 12 settings: {span} {unit}, C {strength:g}"
    return Candidate(name, TextSystem(text, study.tokenizer), f"{sum(map(len, sets)):,} labelled prompts; {spent}")
