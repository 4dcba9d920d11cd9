"""The text around a user's text: found where prompts share it, and only there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
