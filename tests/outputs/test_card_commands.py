"""A card's own commands: run as they stand there, for every form, kind of logits and vocabulary."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import EVEN, decode, make_bundle, to_text
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import diagonal, examples, thin
from tiny import VOCAB

from exporter.escaping import quote_shell
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.runtime.generate import generate_greedy
from exporter.runtime.prompting import open_decoder
from exporter.runtime.session import open_session

PROMPT = [3, 1, 4]  # the card's example in `make_bundle`
KNOWN = (1, 3, 4, 5, 7)
ANSWERS = (7, 3, 5)
LABELS = ("seven", "three", "five")
FORMS, LOGITS, VOCABULARIES = ("plain", "masked", "past"), ("all", "last", "answers", "classes"), ("full", "task")
COMBINATIONS = [
    combination
    for combination in itertools.product(FORMS, LOGITS, VOCABULARIES)
    if combination[:2] != ("past", "classes")
]


def is_even(combination: tuple[str, str, str]) -> bool:
    """Half of them, in which each form meets each kind of logits."""
    form, logits, vocab = combination
    return (FORMS.index(form) + LOGITS.index(logits) + VOCABULARIES.index(vocab)) % 2 == 0


def make_options(form: str, logits: str, vocab: str) -> GraphOptions:
    few = logits in ("answers", "classes")
    return GraphOptions(
        form=form,  # type: ignore[arg-type]
        logits=logits,  # type: ignore[arg-type]
        answer_ids=ANSWERS if few else (),
        labels=LABELS if logits == "classes" else (),
        vocabulary=KNOWN if vocab == "task" else None,
    )


def find_snippet(card: str) -> str:
    """The five lines of Python for ONNX Runtime."""
    (text,) = re.findall(r"With ONNX Runtime in Python, in this folder:\n\n((?:    .*\n)+)", card)
    return re.sub("^    ", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("form", "logits", "vocab"), thin(COMBINATIONS, is_even))
def test_the_cards_commands_say_what_the_model_says(
    form: str, logits: str, vocab: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "b", form=form, heads=EVEN, graph=make_options(form, logits, vocab))  # type: ignore[arg-type]
    card = (bundle.folder / "README.md").read_text()
    (script,) = re.findall(r"^    (python run\.py .*)$", card, re.MULTILINE)
    (command,) = re.findall(r"`(export-circuit run \. .*?)` does the same", card)
    if logits == "classes":
        first = open_decoder(bundle.folder).classify(to_text(PROMPT)).label
    else:
        (found,) = generate_greedy(open_session(bundle.folder / "model.onnx"), [PROMPT], max_new_tokens=1)
        first = to_text(found.token_ids)
    said = subprocess.run(
        [sys.executable, *shlex.split(script)[1:]], cwd=bundle.folder, capture_output=True, text=True, check=True
    )
    monkeypatch.chdir(bundle.folder)
    text = said.stdout if logits == "classes" else said.stdout.removeprefix(to_text(PROMPT) + " ")
    assert run.succeeds(*shlex.split(command)[1:]).strip() == text.strip()
    words = said.stdout.split()
    assert words[0 if logits == "classes" else 3] == first
    if form == "past":
        return
    scope: dict[str, Any] = {"text": to_text(PROMPT)}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(find_snippet(card), scope)
    assert out.getvalue().strip() == first


def _find_new_word(model: CircuitModel) -> tuple[list[int], list[int], int]:
    """A prompt, what follows it, and the place in that, not the first, of a token that stands nowhere before."""
    for start in range(VOCAB):
        prompt = [start, 1, 4]
        said = decode(model, prompt, 6)
        for place in range(1, 6):
            if said[place] not in {*prompt, *said[:place]}:
                return prompt, said, place
    raise AssertionError("the tiny model repeats itself after every prompt")


@pytest.mark.parametrize(("form", "logits"), diagonal(FORMS, ("all", "last")))
def test_a_text_that_ends_early_is_printed_with_the_reason(form: str, logits: str, tmp_path: Path, run: Run) -> None:
    """The model answers with a token that it cannot read on from."""
    folder = make_bundle(tmp_path / "a", form=form, heads=EVEN, graph=make_options(form, logits, "full"))  # type: ignore[arg-type]
    prompt, said, later = _find_new_word(folder.rewritten)
    known = tuple(sorted({*prompt, 1, *said[:later]}))
    graph = replace(make_options(form, logits, "full"), vocabulary=known)
    bundle = make_bundle(tmp_path / "b", form=form, heads=EVEN, graph=graph)  # type: ignore[arg-type]
    session = open_session(bundle.folder / "model.onnx")
    found, other = generate_greedy(session, [prompt, [1]], max_new_tokens=20)
    assert (found.token_ids, found.stopped) == (said[: later + 1], "guard")
    assert found.refusal is not None and "does not know all tokens" in found.refusal
    assert other.token_ids == decode(bundle.rewritten, [1], len(other.token_ids))
    whole = to_text([*prompt, *found.token_ids])
    script = subprocess.run(
        [sys.executable, str(bundle.folder / "run.py"), to_text(prompt)], capture_output=True, text=True, check=False
    )
    assert (script.returncode, script.stdout) == (0, whole + "\n")
    assert script.stderr == "it ends here: this model does not know all tokens of the text\n"
    code, out, err = run.all("run", bundle.folder, to_text(prompt))
    assert (code, out.strip()) == (0, to_text(found.token_ids))
    assert "warning: the text ends early: this model does not know all tokens of the text" in err


@settings(max_examples=examples(30), deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
def test_a_quoted_word_is_one_line_and_read_back_by_bash(text: str) -> None:
    word = quote_shell(text)
    assert len(word.splitlines()) == 1
    said = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert said.stdout.decode() == text
