"""What a bag of words gets on task files: `python benchmarks/bag_of_words.py FILE ...`.

TF-IDF of words and pairs of words with logistic regression (scikit-learn), learnt on the labelled patching and
selection lines; C, and whether pairs are used, by cross-validation on them. A class is what is right: the answer, or
all answers of the line. A task that this does as well as a language model needs none. It takes the extra `compare`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from exporter.loading.load import load_model
from exporter.tasks import FILE_SIZES, Example, read_task_file

GRID = {"words__ngram_range": [(1, 1), (1, 2)], "regression__C": [0.1, 1.0, 10.0, 100.0]}
FOLDS = 5


def measure_bag_of_words(path: str | Path, *, seed: int = 0) -> dict[str, float]:
    """Accuracy on the test set and on every unseen set, by the set's name."""
    tokenizer = load_model("bundled").tokenizer  # the sets of a file are the same for every tokenizer
    sets = read_task_file(path, tokenizer, seed=seed, sizes=FILE_SIZES).examples
    learnt = [example for name in ("patching", "selection") for example in sets[name] if example.is_labelled]
    steps = [("words", TfidfVectorizer()), ("regression", LogisticRegression(max_iter=1000))]
    search = GridSearchCV(Pipeline(steps), GRID, cv=FOLDS)
    search.fit(*_split(learnt))
    return {
        name: float(search.score(*_split(examples)))
        for name, examples in sets.items()
        if name not in ("patching", "selection")
    }


def _split(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Prompts, and the right answers of each as one class."""
    return [str(example.record.prompt) for example in examples], ["|".join(e.record.answers) for e in examples]


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        found = measure_bag_of_words(path)
        print(f"{path.name}: {', '.join(f'{name} {accuracy:.1%}' for name, accuracy in found.items())}")


if __name__ == "__main__":
    main()
