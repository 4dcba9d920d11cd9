"""The example files: what their scripts write, in balanced sets that share no phrases and no unseen nouns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from types import ModuleType

import pytest
from bag_of_words import measure_bag_of_words

from exporter.loading.load import LanguageModel
from exporter.tasks import FILE_SIZES, Example, read_task_file
from exporter.tasks.examples import agreement_words, make_agreement, make_sentiment
from exporter.tasks.file import FileTask

EXAMPLES = {"sentiment": make_sentiment, "agreement": make_agreement}


@pytest.fixture(scope="module")
def found(bundled: LanguageModel) -> dict[str, FileTask]:
    """Both files, read as a job reads them."""
    return {name: read_task_file(module.OUT, bundled.tokenizer, sizes=FILE_SIZES) for name, module in EXAMPLES.items()}


def count_words(examples: Sequence[Example]) -> Counter[str]:
    return Counter(word for example in examples for word in re.findall(r"\w+", str(example.record.prompt).lower()))


@pytest.mark.parametrize("module", EXAMPLES.values(), ids=EXAMPLES)
def test_the_example_files_are_what_their_scripts_write(module: ModuleType) -> None:
    text = module.OUT.read_text(encoding="utf-8")
    assert module.write_examples() == text
    assert len(text.encode()) < 600_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_line_is_used_and_the_answers_are_balanced(name: str, found: dict[str, FileTask]) -> None:
    task = found[name]
    assert task.duplicates == task.unused == 0 and not task.near
    assert 1500 <= task.data.patching.n_unlabelled <= 3000
    assert len(task.data.test) >= 240 and task.data.ood
    assert len({len(row.input_ids) for row in task.examples["test"]}) > 8
    for rows in task.examples.values():  # balanced: neither answer is more than 60 %
        labelled = [row.steps for row in rows if row.is_labelled]
        assert len(labelled) >= 40 and 0.4 < labelled.count(labelled[0]) / len(labelled) < 0.6


def test_no_phrase_of_sentiment_is_in_two_sets() -> None:
    sections = make_sentiment.read_phrases()
    sets: dict[str, set[str]] = {}
    verdicts = 0
    for name, (_, phrases) in sections.items():
        for (split, sign), given in phrases.items():
            assert split in make_sentiment.SUBJECTS and (sign in make_sentiment.SIGNS or name == "leads")
            verdicts += len(given) * (name != "leads")
            for phrase in given:
                sets.setdefault(phrase, set()).add(split)
    assert verdicts >= 600 and len(sections) >= 23
    assert [phrase for phrase, splits in sets.items() if len(splits) > 1] == []


def test_the_unseen_nouns_of_agreement_are_in_no_other_line(found: dict[str, FileTask]) -> None:
    examples = found["agreement"].examples
    others = count_words([row for name, rows in examples.items() if name != "swapped" for row in rows])
    nouns = {form for pair in make_agreement.SWAPPED for noun in pair for form in (noun, f"{noun}s")}
    assert len(nouns) == 120 and not nouns & others.keys()
    unlabelled = count_words([row for row in examples["patching"] if not row.is_labelled])
    for one, several, *_, other, others_ in make_agreement.UNSEEN:
        assert not {one, several, *other.split()[:1], *others_.split()[:1]} & unlabelled.keys()
    for _, *places in make_agreement.PLACES:
        assert not set(places) & unlabelled.keys()


def test_swapped_holds_each_bag_of_words_with_both_answers(found: dict[str, FileTask]) -> None:
    bags: dict[tuple[str, ...], list[object]] = {}
    for row in found["agreement"].examples["swapped"]:
        bags.setdefault(tuple(sorted(str(row.record.prompt).lower().split())), []).append(row.steps)
    assert len(bags) == 60
    assert all(len(answers) == 2 and answers[0] != answers[1] for answers in bags.values())


def test_word_lists_have_no_word_twice_and_their_plurals() -> None:
    forms = agreement_words.PEOPLE + agreement_words.THINGS
    assert [pair for pair, n in Counter(forms).items() if n > 1] == []
    for pair in [
        ("baby", "babies"),
        ("child", "children"),
        ("box", "boxes"),
        ("journey", "journeys"),
        ("leaf", "leaves"),
    ]:
        assert pair in forms


@pytest.mark.slow
def test_a_bag_of_words_does_not_do_the_examples() -> None:
    assert measure_bag_of_words(make_sentiment.OUT)["test"] <= 0.85
    found = measure_bag_of_words(make_agreement.OUT)
    assert found["swapped"] == 0.5 and found["test"] <= 0.9
