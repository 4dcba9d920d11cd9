"""A classifier's file (`--logits classes`): the three-way gate, its own figures, and what reads its logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import make_bundle, make_dense, run_script, to_text
from exports import corrupt
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, VOCAB, cases, hook_surgery, make_prompts

from exporter.bench.workload import BoundModel, Workload
from exporter.errors import ExactnessError, InputError
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.rewrite.surgery import operate, rewrite_model
from exporter.runtime.classify import classify_prompts
from exporter.runtime.generate import generate_greedy
from exporter.runtime.prompting import open_decoder
from exporter.runtime.session import open_session, run_logits
from exporter.runtime.words import read_labels
from exporter.verify.exactness import verify_surgery

CLASSES = GraphOptions(logits="classes", answer_ids=(7, 3, 5), labels=("seven", "three", "five"))


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(5))
@given(data=st.data())
def test_the_gate_passes_every_classifier_and_none_that_was_changed(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = data.draw(cases(families=(family,), padded=None))
    answers = tuple(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=5, unique=True)))
    form = "masked" if case.prompts.mask is not None or data.draw(st.booleans()) else "plain"
    labels = tuple(f"w{token}" for token in answers)
    options = GraphOptions(form=form, logits="classes", answer_ids=answers, labels=labels)
    surgery = hook_surgery(case.model, case.circuit, case.patching)
    rewritten = operate(case.model.dense, surgery)
    path = tmp_path_factory.mktemp("classes") / "m.onnx"
    export_onnx(rewritten, path, options)
    found = verify_surgery(case.model, surgery, rewritten, path, patching=case.patching, prompts=case.prompts)
    assert found.rewritten_vs_onnx <= found.limit
    corrupt(path, "W_U", 10 * max(1.0, found.limit / 1e-4))
    with pytest.raises(ExactnessError, match="rewritten vs onnx"):
        verify_surgery(case.model, surgery, rewritten, path, patching=case.patching, prompts=case.prompts)


def test_classes_are_named_and_their_probabilities_add_up(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", graph=replace(CLASSES, form="masked"), form="masked")
    session = open_session(bundle.folder / "model.onnx")
    assert read_labels(session) == CLASSES.labels
    assert {value.name: value.shape for value in session.get_outputs()} == {"logits": ["batch", 3]}
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6]]
    for prompt, found in zip(prompts, classify_prompts(session, prompts), strict=True):
        logits = bundle.rewritten.next_token_logits(torch.tensor([prompt]))[0, [7, 3, 5]]
        assert found.label == CLASSES.labels[int(logits.argmax())]
        np.testing.assert_allclose(list(found.scores.values()), logits.softmax(-1).numpy(), rtol=1e-3, atol=1e-5)
        assert list(found.scores) == list(CLASSES.labels) and found.prompt_ids == prompt
    with pytest.raises(InputError, match="takes at most 24"):
        classify_prompts(session, [[1] * 25])
    with pytest.raises(InputError, match="is a classifier, which generates nothing"):
        generate_greedy(session, [[1]])


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    export_onnx(make_dense().dense, tmp_path / "m.onnx", GraphOptions(logits="last"))
    session = open_session(tmp_path / "m.onnx")
    assert read_labels(session) is None
    with pytest.raises(InputError, match="no classifier; generate text with it, or export with --logits classes"):
        classify_prompts(session, [[1]])


@pytest.mark.parametrize("form", ["plain", "masked"])
def test_the_commands_of_a_bundle_say_the_class(form: str, tmp_path: Path) -> None:
    graph = replace(CLASSES, form=form, vocabulary=(1, 3, 4, 5, 7))
    folder = make_bundle(tmp_path / "b", graph=graph, form=form).folder
    expected = open_decoder(folder).classify(to_text([3, 1, 4]))
    assert json.loads(json.dumps(expected.to_json()))["label"] == expected.label
    said = run_script(folder, to_text([3, 1, 4]))
    assert (said.stdout, said.stderr) == (expected.label + "\n", "")
    other = run_script(folder, to_text([3, 2]))
    assert other.returncode == 1 and "does not know all tokens" in other.stderr


def test_a_benchmark_checks_the_classes_of_its_examples(tmp_path: Path) -> None:
    model = rewrite_model(make_dense(), make_bundle(tmp_path / "b").manifest.get_circuit(), make_prompts(8, 6))
    export_onnx(model, tmp_path / "m.onnx", CLASSES)
    ids = make_prompts(6, 5).input_ids.numpy()
    bound = BoundModel(tmp_path / "m.onnx")
    answers = np.array(CLASSES.answer_ids)[run_logits(bound.session, ids)[:, -1].argmax(-1)]
    bound.bind(Workload(ids, np.ones(ids.shape, bool), answers))
    answers[2] = 0
    with pytest.raises(ExactnessError, match="gives 1 of 6 example prompts another answer"):
        bound.bind(Workload(ids, np.ones(ids.shape, bool), answers))


@pytest.mark.parametrize(
    ("damage", "message"), [("no JSON", "damaged"), ('["a"]', "damaged"), ("[1, 2, 3]", "damaged"), ("{}", "damaged")]
)
def test_damaged_labels_are_refused(damage: str, message: str, tmp_path: Path) -> None:
    import onnx

    export_onnx(make_dense().dense, tmp_path / "m.onnx", CLASSES)
    proto = onnx.load(tmp_path / "m.onnx")
    next(entry for entry in proto.metadata_props if entry.key == "export_circuit.labels").value = damage
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message):
        read_labels(open_session(tmp_path / "m.onnx"))
