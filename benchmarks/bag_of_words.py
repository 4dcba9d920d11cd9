"""What a bag of words gets on task files: `python benchmarks/bag_of_words.py FILE ...`.

TF-IDF with logistic regression, learnt on the labelled patching and selection lines, tuned as `export-circuit compare`
tunes it (`exporter.evidence.bag_of_words`). A task that this does as well as a language model needs none. It takes the
extra `compare`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exporter.evidence.bag_of_words import fit_text, list_choices, mark_right, read_texts
from exporter.loading.load import load_model
from exporter.metrics.statistics import Accuracy
from exporter.tasks import FILE_SIZES, read_task_file


def measure_bag_of_words(path: str | Path, *, seed: int = 0) -> dict[str, float]:
    """Accuracy on the test set and on every unseen set, by the set's name."""
    tokenizer = load_model("bundled").tokenizer  # the sets of a file are the same for every tokenizer
    data = read_task_file(path, tokenizer, seed=seed, sizes=FILE_SIZES).data
    learnt = [part.take_labelled() for part in (data.patching, data.selection) if part.is_labelled.any()]
    text = fit_text(learnt, tokenizer, "logistic")
    found = {}
    for name, prompts in {"test": data.test, **data.ood}.items():
        answers = text.answer(read_texts(prompts, tokenizer), list_choices(prompts))
        found[name] = Accuracy.of_values(mark_right(prompts, answers)).accuracy
    return found


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        found = measure_bag_of_words(path)
        print(f"{path.name}: {', '.join(f'{name} {accuracy:.1%}' for name, accuracy in found.items())}")


if __name__ == "__main__":
    main()
