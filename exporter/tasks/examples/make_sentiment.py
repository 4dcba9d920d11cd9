"""Write sentiment.jsonl: is a short review positive or negative, by next token?

    python -m exporter.tasks.examples.make_sentiment

Every phrase was written by hand for this file, in sentiment_phrases.txt: verdicts on 24 kinds of things, whole
sentences, and what may stand before and behind them. Each phrase belongs to one set, so that the words of the test set
are for a good part in no other: a bag of words, which knows what it has seen, has to guess, and a language model knows
them. Many verdicts of the test set need such knowledge ("kept us on the edge of our seats"). Within a
kind of thing each subject goes with each verdict. Most patching lines come without an answer: the dense model is asked.
Verdicts that the dense model got wrong were replaced or left out, so its accuracy here is higher than on free reviews.
`benchmarks/bag_of_words.py` measures what a bag of words gets; the README beside this file has its figures.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

from exporter.tasks.task import SplitSizes

OUT = Path(__file__).with_name("sentiment.jsonl")
PHRASES = Path(__file__).with_name("sentiment_phrases.txt")
LABELS = (" positive", " negative")
SIGNS = ("+", "-")
SUBJECTS = {"patching": 5, "selection": 2, "test": 2}  # subjects that go with a verdict
SENTENCE_SUBJECTS = {"patching": 10, "selection": 3, "test": 5}
LABELLED = 0.2  # of the patching lines; of the others all
LEAD, TAIL = 0.3, 0.3

# Unseen in the rest of the file: other wordings, and other kinds of things.
WORDINGS = (
    ["Wow. Just wow. {} exceeded every hope I had.", "If I could, I would give {} six stars.",
     "{} put a huge smile on my face.", "I can't stop telling my friends how good {} was.",
     "All of us fell for {} at once.", "Hats off to everybody behind {}, it is superb."],
    ["Ugh. {} let me down in every possible way.", "If I could, I would give {} zero stars.",
     "{} ruined our whole weekend.", "I can't believe anybody pays for {}, it is that bad.",
     "All of us loathed {} at once.", "Shame on everybody behind {}, it is garbage."],
)  # fmt: skip
THINGS = ["the musical", "the museum", "the boat trip", "the barbecue", "the podcast", "the zoo", "the city walk",
          "the sauna", "the ferry", "the exhibition"]  # fmt: skip

Phrases = dict[tuple[str, str], list[str]]
"""Phrases by set and sign; those without a sign have the sign ""."""


def read_phrases() -> dict[str, tuple[list[str], Phrases]]:
    """By section of sentiment_phrases.txt: its subjects and its phrases."""
    sections: dict[str, tuple[list[str], Phrases]] = {}
    for line in PHRASES.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, _, subjects = line[1:].partition("]")
            phrases: Phrases = defaultdict(list)
            sections[name] = ([subject.strip() for subject in subjects.split(";")], phrases)
        elif line and not line.startswith("#"):
            split, sign, rest = line.split(" ", 2)
            phrases[split, sign] = [phrase.strip() for phrase in rest.split(";")]
    return sections


def write_examples() -> str:
    """The lines of the file, always the same."""
    rng = random.Random(0)
    sections = read_phrases()
    leads, tails, sentences = (sections.pop(name)[1] for name in ("leads", "tails", "sentences"))
    every = [subject for subjects, _ in sections.values() for subject in subjects]
    lines: dict[str, list[str]] = {split: [] for split in SUBJECTS}
    unseen: list[str] = []

    def add(split: str, label: int, review: str) -> None:
        parts = [review[0].upper() + review[1:]]
        if rng.random() < LEAD:
            parts.insert(0, rng.choice(leads[split, "+-"]))
        if rng.random() < TAIL:
            parts.append(rng.choice(tails[split, SIGNS[label]]))
        is_labelled = split != "patching" or rng.random() < LABELLED
        lines[split].append(_write_line(" ".join(parts), LABELS[label] if is_labelled else None, split))

    for split, n_subjects in SUBJECTS.items():
        for label, sign in enumerate(SIGNS):
            for subjects, verdicts in sections.values():
                for verdict in verdicts[split, sign]:
                    for subject in rng.sample(subjects, n_subjects):
                        add(split, label, f"{subject} {verdict}.")
            for sentence in sentences[split, sign]:
                for subject in rng.sample(every, SENTENCE_SUBJECTS[split]):
                    add(split, label, sentence.format(subject[0].lower() + subject[1:]))
        rng.shuffle(lines[split])
    del lines["selection"][SplitSizes().selection :]  # a job takes no more, unless it is told to
    for label, answer in enumerate(LABELS):
        for wording in WORDINGS[label]:
            for thing in THINGS:
                text = wording.format(thing)
                unseen.append(_write_line(text[0].upper() + text[1:], answer, "ood:wording"))
    # A file's first line is shown as an example of it, so the test set, with answers, comes first.
    return "".join([*lines["test"], *lines["selection"], *unseen, *lines["patching"]])


def _write_line(review: str, answer: str | None, split: str) -> str:
    fields: dict[str, object] = {"prompt": f"Review: {review}\nSentiment:"}
    if answer is not None:
        fields |= {"answer": answer, "choices": list(LABELS)}
    return json.dumps(fields | {"split": split}) + "\n"


if __name__ == "__main__":
    OUT.write_text(write_examples(), encoding="utf-8")
