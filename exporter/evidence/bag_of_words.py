"""What needs no language model: TF-IDF features of a prompt's text, and a linear classifier (scikit-learn, an extra).

A class is an answer: the ids of its tokens, as text. Of several right answers a prompt is taught the one that is right
for most prompts, as somebody would do who wants a high score: where a year is to be later than another one, 99.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from exporter.errors import MissingRuntimeError
from exporter.metrics.statistics import Accuracy
from exporter.tasks import Tokenizer
from exporter.tasks.dataset import Dataset

Classifier = Literal["logistic", "svm"]

FOLDS = 5
STRENGTHS = (0.3, 3.0, 30.0, 300.0)  # the inverse of the penalty
WORDS = (("word", (1, 1)), ("word", (1, 2)), ("char_wb", (2, 4)))  # what a feature is
MOST_TUNED = 1500  # prompts that hyper-parameters are chosen on
QUICK = {"tfidf__ngram_range": (1, 2), "classify__C": 30.0}  # where nothing is tuned
_WORD = r"(?u)\b\w+\b"  # single letters, too


@dataclass(frozen=True, eq=False)
class TextModel:
    """A fitted pipeline, texts in, answers out. settings: hyper-parameters, and `share`, their accuracy in tuning."""

    pipeline: Any
    settings: dict[str, Any]

    def answer(self, texts: Sequence[str], choices: Sequence[set[str]] | None = None) -> list[str]:
        """The likeliest answer to each text, of its choices where some are given and known."""
        if choices is None or not hasattr(self.pipeline, "decision_function"):
            return [str(label) for label in self.pipeline.predict(texts)]
        return choose(self.pipeline.decision_function(texts), [str(c) for c in self.pipeline.classes_], choices)

    def count_parameters(self) -> int:
        """Weights and biases of the classifier, and the weights of the features; a constant answer is one number."""
        classifier = self.pipeline[-1]
        if not hasattr(classifier, "coef_"):
            return 1
        return int(classifier.coef_.size + classifier.intercept_.size + self.pipeline[0].idf_.size)


def is_installed() -> bool:
    """Whether scikit-learn is there."""
    return importlib.util.find_spec("sklearn") is not None


def require_sklearn() -> None:
    """Raise MissingRuntimeError where scikit-learn is not there."""
    if not is_installed():
        raise MissingRuntimeError("scikit-learn is not installed; pip install 'export-circuit[compare]'")


def choose(scores: Any, classes: Sequence[str], choices: Sequence[set[str]]) -> list[str]:
    """The class with the best score, (prompt, class), or (prompt,) for the second of two, among each prompt's choices.

    A prompt none of whose choices is a class gets the best of all.
    """
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    known = np.array([[name in among for name in classes] for among in choices])
    known |= ~known.any(axis=1, keepdims=True)
    return [classes[place] for place in np.where(known, scores, -np.inf).argmax(axis=1)]


def read_texts(prompts: Dataset, tokenizer: Tokenizer) -> list[str]:
    """Each prompt as text, without padding, and without the first tokens of its own answer."""
    ends = prompts.length - prompts.counted.sum(dim=1) + 1
    real = torch.ones_like(prompts.input_ids, dtype=torch.bool) if prompts.mask is None else prompts.mask
    rows = zip(prompts.input_ids, real, ends.tolist(), strict=True)
    return [str(tokenizer.decode(ids[:end][mask[:end]].tolist())) for ids, mask, end in rows]


def list_answers(prompts: Dataset) -> list[list[str]]:
    """The right answers of each prompt; of one of several tokens the first alternative of each."""
    found = []
    for steps in prompts.steps.tolist():
        right = [[token for token in step if token >= 0] for step in steps]
        right = [step for step in right if step]
        found.append([str(t) for t in right[0]] if len(right) == 1 else [" ".join(str(step[0]) for step in right)])
    return found


def list_choices(prompts: Dataset) -> list[set[str]] | None:
    """The answers that each prompt's is chosen from; None where it is chosen from all."""
    if prompts.choice_ids is None:
        return None
    return [{str(token) for token in row if token >= 0} for row in prompts.choice_ids.tolist()]


def name_classes(sets: Sequence[Dataset]) -> list[str]:
    """What each prompt of some sets is taught: of its right answers the one that is right for most prompts."""
    answers = [right for prompts in sets for right in list_answers(prompts)]
    counts = Counter(answer for right in answers for answer in right)
    return [max(right, key=lambda answer: counts[answer]) for right in answers]


def mark_right(prompts: Dataset, answers: Sequence[str]) -> Tensor:
    """Whether each prompt's answer is right, as the task defines it: (prompt,) bool."""
    tokens = torch.full((len(prompts), prompts.n_steps), -2)
    for row, (answer, n_steps) in enumerate(zip(answers, prompts.counted.sum(dim=1).tolist(), strict=True)):
        if len(ids := [int(token) for token in answer.split()]) == n_steps:
            tokens[row, -n_steps:] = torch.tensor(ids)
    return prompts.is_answer(tokens)


def make_folds(labels: Sequence[str]) -> Any:
    """A fold for each prompt, every class spread over all of them: (prompt,); any two prompts of a class lie apart."""
    order = sorted(range(len(labels)), key=lambda row: (labels[row], row))
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def can_learn(labels: Sequence[str]) -> bool:
    """Whether there are two classes in whatever part of the folds; else the commonest answer is all that is learnt."""
    counts = sorted(Counter(labels).values())
    return len(labels) >= 2 * FOLDS and len(counts) > 1 and counts[-2] > 1


def make_pipeline(kind: Classifier, labels: Sequence[str]) -> Any:
    """Features and classifier, not fitted; a constant where the labels have nothing to tell apart."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.svm import LinearSVC

    if not can_learn(labels):
        return Pipeline([("classify", DummyClassifier(strategy="most_frequent"))])
    kinds = {"logistic": LogisticRegression(max_iter=1000), "svm": LinearSVC(random_state=0)}
    features = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD)
    return Pipeline([("tfidf", features), ("classify", kinds[kind])])


def fit_text(sets: Sequence[Dataset], tokenizer: Tokenizer, kind: Classifier) -> TextModel:
    """Choose hyper-parameters by cross-validation on MOST_TUNED prompts at most, then fit on all.

    Every prompt needs a right answer.
    """
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    texts, labels = [text for prompts in sets for text in read_texts(prompts, tokenizer)], name_classes(sets)
    rows = random.Random(0).sample(range(len(texts)), min(len(texts), MOST_TUNED))
    some = [texts[row] for row in rows], [labels[row] for row in rows]
    pipeline, settings = make_pipeline(kind, labels), dict[str, Any]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers that stop early, and of classes with few prompts
        if can_learn(labels) and can_learn(some[1]):
            grid = [
                {"tfidf__analyzer": [unit], "tfidf__ngram_range": [span], "classify__C": list(STRENGTHS)}
                for unit, span in WORDS
            ]
            tuned = GridSearchCV(pipeline, grid, cv=PredefinedSplit(make_folds(some[1])), refit=False).fit(*some)
            settings = tuned.best_params_ | {"share": float(tuned.best_score_)}
            pipeline.set_params(**tuned.best_params_)
        return TextModel(pipeline.fit(texts, labels), settings)


def cross_validate(sets: Sequence[Dataset], tokenizer: Tokenizer) -> Accuracy | None:
    """The accuracy of TF-IDF with logistic regression on prompts that it was not fitted on; None for too few prompts.

    Nothing is tuned. Every prompt needs a right answer.
    """
    from sklearn.model_selection import PredefinedSplit

    texts, labels = [text for prompts in sets for text in read_texts(prompts, tokenizer)], name_classes(sets)
    if len(labels) < 2 * FOLDS:
        return None
    choices = [among for prompts in sets for among in list_choices(prompts) or [set[str]()] * len(prompts)]
    pipeline, answers = make_pipeline("logistic", labels), [""] * len(labels)
    if can_learn(labels):
        pipeline.set_params(**QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for train, held in PredefinedSplit(make_folds(labels)).split():
            fitted = TextModel(pipeline.fit([texts[i] for i in train], [labels[i] for i in train]), {})
            found = fitted.answer([texts[i] for i in held], [choices[i] for i in held])
            for row, answer in zip(held, found, strict=True):
                answers[row] = answer
    left = iter(answers)
    right = [mark_right(prompts, list(islice(left, len(prompts)))) for prompts in sets]
    return Accuracy.of_values(torch.cat(right))
