"""The text around a user's text: found where prompts share it, and only there; or declared, and held to every line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UsageError
from exporter.loading.load import LanguageModel
from exporter.tasks import DataFileError, SplitSizes, load_task, rebuild_task
from exporter.tasks.template import Template, find_template

REVIEWS = ["It is good.", "I hate it!", "So so.", "It is bad."]


def test_what_all_prompts_share_at_both_ends_is_the_template() -> None:
    prompts = [f"Review: {text}\nSentiment:" for text in REVIEWS]
    assert find_template(prompts, prompts) == Template("Review: ", "\nSentiment:")


@pytest.mark.parametrize(
    ("texts", "form", "expected"),
    [
        (["It is good.", "It was bad."], "Review: {}\nSentiment:", ("Review: ", "\nSentiment:")),  # shared words
        (["one day", "my day"], "Review: {}\nSentiment:", ("Review: ", "\nSentiment:")),
        (["one nice day.", "two nice day."], "Q: {}\n\nIs it?\nA:", ("Q: ", "\n\nIs it?\nA:")),
        (["It is good.", "It was bad."], "{} All in all, it was", None),  # words before, and no sign
        (["A film.", "My meal!"], "{} All in all, it was", ("", " All in all, it was")),
        (["good day.", "bad way."], "Review: {}\nSentiment:", ("Review: ", "\nSentiment:")),  # no parts of words
        (["a b", "c d"], 'Say "{}" in one word:', ('Say "', '" in one word:')),
        (["a", "b"], "{}\nlabel:", ("", "\nlabel:")),
    ],
)
def test_words_are_whole(texts: list[str], form: str, expected: tuple[str, str] | None) -> None:
    prompts = [form.format(text) for text in texts]
    assert find_template(prompts, []) == (None if expected is None else Template(*expected))


@pytest.mark.parametrize(
    ("patching", "others"),
    [
        (["The keys", "The doors of the house"], []),  # a prefix alone
        (["What is it?", "Who is she?"], []),  # a mere sign at the end
        (["Review: a\nSentiment:"], []),  # one prompt
        (["Review: a\nSentiment:"] * 3, []),
        (["Review: a\nSentiment:", "Review: b\nSentiment:"], ["Text: c\nSentiment:"]),
        (["Review: a \nSentiment:", "Review: b\nSentiment:"], []),  # white space of one text alone
        (["Review: \nSentiment:", "Review: b\nSentiment:"], []),  # no text
    ],
)
def test_other_prompts_have_none(patching: list[str], others: list[str]) -> None:
    assert find_template(patching, others) is None


@given(st.text(), st.text(), st.text(min_size=1))
def test_filling_and_cutting_are_inverse(prefix: str, suffix: str, text: str) -> None:
    template = Template(prefix, suffix)
    assert template.fits(template.fill(text)) and template.cut(template.fill(text)) == text
    assert template.cut(prefix + suffix) == prefix + suffix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Review: {text}\nSentiment:", ("Review: ", "\nSentiment:")),
        ("{review} is", ("", " is")),
        ("Say {text}", ("Say ", "")),
        ('{{"a": {text}}}', ('{"a": ', "}")),  # as in make-data
        ("{{{text}}}!", ("{", "}!")),
    ],
)
def test_a_declared_template_has_one_slot(text: str, expected: tuple[str, str]) -> None:
    assert Template.declare(text) == Template(*expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Review:", "has 0 slots; write one"),
        ("{a} and {b}", "has 2 slots; write one"),
        ("{text}", "has nothing around its slot; leave it out"),
        ("{a.b}:", r"--template has \{a.b\}; a slot is a column's name"),
        ("{a", "write a brace that is no slot twice"),
    ],
)
def test_what_declares_no_template_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Template.declare(text)


DECLARED = "The sign said {text} today, which meant"  # words before the text: nothing tells where they end


def write_lines(path: Path, **changed: dict[str, Any]) -> Path:
    """40 lines in the main sets and 10 in an unseen one of another wording; `line7` are fields of line 7."""
    lines: list[dict[str, Any]] = [
        {
            "prompt": f"The sign said {i} {'go' if i % 2 else 'stop'} today, which meant",
            "answer": (" yes", " no")[i // 4 % 2],
        }
        for i in range(40)
    ]
    lines = [line | {"split": ("patching", "selection", "test", "test")[i % 4]} for i, line in enumerate(lines)]
    lines += [{"prompt": f"Someone saw {i}: it was", "answer": " no", "split": "ood:other"} for i in range(10)]
    for name, fields in changed.items():
        place = int(name.removeprefix("line")) - 1
        lines[place] = {key: value for key, value in (lines[place] | fields).items() if value is not None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_declared_template_is_the_files_and_builds_it_again(tmp_path: Path, bundled: LanguageModel) -> None:
    path, sizes = write_lines(tmp_path / "d.jsonl"), SplitSizes(20, 20, 20, 10)
    assert load_task(path, bundled.tokenizer, sizes=sizes).template is None  # it cannot be found
    data = load_task(path, bundled.tokenizer, sizes=sizes, template=DECLARED)
    assert data.template == Template("The sign said ", " today, which meant")
    assert data.parameters["template"] == DECLARED and len(data.readings) == 40
    assert rebuild_task(data.task, data.parameters, bundled.tokenizer, path=path).template == data.template


def test_lines_without_the_declared_template_are_named(
    tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]
) -> None:
    path = write_lines(
        tmp_path / "d.jsonl",
        line3={"prompt": "A sign said 2 stop today, which meant"},
        line7={"prompt": "The sign said 6 stop today"},
        line9={"prompt": "The sign said  today, which meant"},
        line10={"prompt": None, "prompt_ids": [1, 2, 3]},
    )
    model = make_checkpoint()
    given = ("--task", path, "--template", DECLARED, "--model", model, "--out", tmp_path / "m.onnx")
    run.fails(
        3, r"line 3: the prompt does not begin with 'The sign said ', as --template says.*3 more problems", *given
    )
    code, out, _ = run.all("check-data", path, "--model", model, "--template", DECLARED)
    expected = (
        "does not begin with 'The sign",
        "does not end with ' today, which",
        "has no text within",
        "is token ids",
    )
    assert code == 3
    for line, number, words in zip(out.splitlines(), (3, 7, 9, 10), expected, strict=True):
        assert line.startswith(f"line {number}: the prompt ") and words in line


def test_other_tasks_and_other_parameters_are_refused(tmp_path: Path, bundled: LanguageModel) -> None:
    path = write_lines(tmp_path / "d.jsonl")
    with pytest.raises(UsageError, match="has no parameter 'letters'; it takes template"):
        load_task(path, bundled.tokenizer, letters=3)
    with pytest.raises(UsageError, match="template is 'Say \\{text\\}' for the task 'ioi'; choose from all, paper"):
        load_task("ioi", bundled.tokenizer, template="Say {text}")
    with pytest.raises(DataFileError, match="line 1: the prompt does not begin with 'Say '"):
        load_task(path, bundled.tokenizer, template="Say {text}")
