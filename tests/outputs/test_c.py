"""The C program of a bundle, compiled against ONNX Runtime's header and run with its library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundles import EVEN, UNEVEN, decode, make_bundle
from c_programs import build_with_cmake, compile_program, make_release, run_program

from exporter.circuit import Ablation
from exporter.graph.options import GraphOptions

PROMPT = [3, 1, 4, 1, 5, 9]
ANSWERS = (3, 9, 20)
CASES = {
    "plain": (GraphOptions(logits="last"), UNEVEN),
    "everywhere": (GraphOptions(), UNEVEN),
    "masked": (GraphOptions(form="masked", logits="last"), UNEVEN),
    "past": (GraphOptions(form="past", logits="last"), UNEVEN),
    "alike": (GraphOptions(form="past", logits="last"), EVEN),
    "none": (GraphOptions(form="past", logits="last"), ()),
    "optimum": (GraphOptions(form="past", logits="last", optimum=True), UNEVEN),
}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release") / "onnxruntime")


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_circuits_token(name: str, release: Path, tmp_path: Path) -> None:
    graph, heads = CASES[name]
    bundle = make_bundle(tmp_path / "b", graph=graph, form=graph.form, heads=heads, targets=["c"])
    program = compile_program(bundle.folder / "c" / "run.c", release, tmp_path / "run")
    for prompt in (PROMPT, [2, 6], list(range(24))):
        done = run_program(program, bundle.folder, prompt)
        assert (done.stderr, done.stdout) == ("", f"{decode(bundle.rewritten, prompt, 1)[0]}\n"), prompt
    assert len((bundle.folder / "c" / "run.c").read_text().splitlines()) <= 75


def test_cmake_builds_it_and_answers_have_words(release: Path, tmp_path: Path) -> None:
    graph = GraphOptions(logits="answers", answer_ids=ANSWERS, vocabulary=tuple(range(1, 12)))
    bundle = make_bundle(tmp_path / "b", graph=graph, form="plain", ablation=Ablation(), targets=["c"])
    program = build_with_cmake(bundle.folder / "c", release, tmp_path / "build")
    done = run_program(program, bundle.folder, PROMPT)
    logits = bundle.rewritten.next_token_logits(torch.tensor([PROMPT]))[0, list(ANSWERS)]
    token = ANSWERS[int(logits.argmax())]
    assert (done.stderr, done.stdout) == ("", f"{token}\tw{token}\n")
    refused = {
        "this model does not know all tokens of the text\n": [3, 1, 4, 1, 5, 30],
        "the prompt has 5 tokens, not 6\n": PROMPT[1:],
        "the prompt has 0 tokens, not 6\n": [],
        "no token id: w3\n": [*PROMPT[1:], "w3"],
    }
    for message, ids in refused.items():
        done = run_program(program, bundle.folder, ids)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert run_program(program, tmp_path / "nowhere", PROMPT).returncode == 1


def test_a_classifier_prints_the_class(release: Path, tmp_path: Path) -> None:
    graph = GraphOptions(logits="classes", answer_ids=ANSWERS, labels=("three", "nine", '"twenty"\t\n'))
    bundle = make_bundle(tmp_path / "b", graph=graph, form="plain", targets=["c"])
    program = compile_program(bundle.folder / "c" / "run.c", release, tmp_path / "run")
    found = set()
    for prompt in (PROMPT, [2, 6], [30, 31, 32], [7], [20, 20, 20]):
        logits = bundle.rewritten.next_token_logits(torch.tensor([prompt]))[0, list(ANSWERS)]
        place = int(logits.argmax())
        found.add(place)
        done = run_program(program, bundle.folder, prompt)
        assert (done.stderr, done.stdout) == ("", f"{ANSWERS[place]}\t{graph.labels[place].strip()}\n")
    assert len(found) > 1
