"""Every exact reduction of the exported graph, alone and with all others: it gives what the hooked model gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exports import assert_same_logits, expect, reduced_cases, run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, VOCAB, make_model, make_prompts

from exporter.circuit import Circuit, Head
from exporter.errors import InputError
from exporter.files.onnx_file import read_onnx
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.outputs.manifest import hash_file
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session, read_answer_ids, read_vocab_size, run_logits
from exporter.runtime.words import read_labels
from exporter.tasks.dataset import Dataset

CIRCUIT = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(0, 2))


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(25))
@given(data=st.data())
def test_every_combination_is_exact(family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    case, options = data.draw(reduced_cases(family))
    path, prompts = tmp_path_factory.mktemp("reduced") / "m.onnx", case.prompts
    description = export_onnx(rewrite_model(case.model, case.circuit, case.patching), path, options)
    onnx.checker.check_model(str(path), full_check=True)
    found, expected = run_all(path, prompts), expect(case, options)
    logits = torch.from_numpy(found["logits"])
    assert logits.shape == expected.shape
    assert list(found) == list(description.outputs)
    real = prompts.mask if options.logits == "all" and prompts.mask is not None else slice(None)
    assert_same_logits(logits[real], expected[real])
    assert ("in_vocabulary" in found) == (options.vocabulary is not None)
    if options.vocabulary is not None:
        assert found["in_vocabulary"].tolist() == [True] * len(prompts)
    if options.logits == "answers":
        assert tuple(found["answer_token_ids"]) == options.answer_ids
    if options.answers_only:
        assert tuple(read_answer_ids(open_session(path))) == options.answer_ids
    assert (read_labels(open_session(path)) or ()) == options.labels


def make_reduced(folder: Path, **options: Any) -> tuple[Path, CircuitModel, Dataset]:
    """A small circuit, exported; prompts of 6 tokens that begin alike."""
    prompts = make_prompts(8, 6)
    prompts.input_ids[:, :2] = prompts.input_ids[:1, :2]
    model = rewrite_model(make_model(n_layers=3), CIRCUIT, prompts)
    export_onnx(model, folder / "m.onnx", GraphOptions(**options))
    return folder / "m.onnx", model, prompts


@pytest.mark.parametrize("opening", [False, True])
def test_a_token_outside_is_told_of_and_spoils_no_other_prompt(opening: bool, tmp_path: Path) -> None:
    ids = make_prompts(8, 6).input_ids
    ids[:, :2] = ids[:1, :2]
    vocabulary = tuple(sorted(set(ids.flatten().tolist())))
    assert len(vocabulary) < VOCAB
    shared = tuple(ids[0, :2].tolist()) if opening else ()
    path, model, prompts = make_reduced(tmp_path, logits="last", vocabulary=vocabulary, opening=shared)
    tokens = [*range(-2, VOCAB + 2), -VOCAB, -VOCAB - 1, 2**31, 2**62, -(2**62)]
    for index, token in enumerate(tokens):
        row, pos = index % 8, index % 6
        changed = replace(prompts, input_ids=prompts.input_ids.clone())
        changed.input_ids[row, pos] = token
        found = run_all(path, changed)
        fits = token in vocabulary and (not opening or pos >= 2 or token == shared[pos])
        assert found["in_vocabulary"].tolist() == [i != row or fits for i in range(8)]
        others = [i for i in range(8) if i != row or fits]
        expected = model.answer_logits(changed.input_ids[others])
        torch.testing.assert_close(torch.from_numpy(found["logits"][others]), expected, rtol=1e-4, atol=1e-4)
        if not fits:
            with pytest.raises(InputError, match="not made for"):
                run_logits(open_session(path), changed.input_ids.numpy())


def count(path: Path, op_type: str) -> int:
    return sum(node.op_type == op_type for node in onnx.load(path).graph.node)


def test_each_reduction_makes_the_file_smaller(tmp_path: Path) -> None:
    """What each alone takes away from the graph or its weights."""
    path, model, prompts = make_reduced(tmp_path)
    n_all = len(onnx.load(path).graph.node)
    make_reduced(tmp_path, logits="last")
    assert len(onnx.load(path).graph.node) < n_all
    assert count(path, "Gemm") == 2 + 2 + 1  # q and the output of the last attention, the MLP after it, the unembedding
    make_reduced(tmp_path, logits="answers", answer_ids=(3, 1))
    assert [tuple(t.dims) for t in onnx.load(path).graph.initializer if t.name == "W_U"] == [(2, 8)]
    make_reduced(tmp_path, logits="answers", answer_ids=(3, 1), vocabulary=tuple(range(30)))
    assert [tuple(t.dims) for t in onnx.load(path).graph.initializer if t.name == "W_E"] == [(30, 8)]
    opening = tuple(prompts.input_ids[0, :2].tolist())
    make_reduced(tmp_path, logits="last", vocabulary=tuple(range(VOCAB)), opening=opening)
    shapes = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
    assert shapes["W_pos"] == (4, 8)  # the others are in the keys and values
    assert shapes["a1.k.opening"] == shapes["a1.v.opening"] == (2, 4)
    assert read_vocab_size(open_session(path)) == VOCAB
    assert model.length == 6


def test_external_data_is_a_file_of_its_own(tmp_path: Path) -> None:
    path, model, prompts = make_reduced(tmp_path, logits="last", external_data=True)
    data = read_onnx(path).weights[0]
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", data.name}
    assert data.name == f"m-{hash_file(data).sha256[:16]}.onnx.data"
    expected = model.answer_logits(prompts.input_ids)
    found = torch.from_numpy(run_logits(open_session(path), prompts.input_ids.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits": "some"}, "choose from all, last, answers, classes"),
        ({"logits": "answers"}, "give both or neither"),
        ({"answer_ids": (1,)}, "give both or neither"),
        ({"logits": "answers", "answer_ids": (1, 1)}, "twice"),
        ({"logits": "answers", "answer_ids": (99,)}, "answer_ids has token 99, and this model's go from 0 to 36"),
        ({"logits": "classes", "answer_ids": (1, 2)}, "there are 0 labels; give 2"),
        ({"logits": "classes", "answer_ids": (1, 2), "labels": ("a", "a")}, "each once"),
        ({"logits": "answers", "answer_ids": (1,), "labels": ("a",)}, "there are 1 labels; give 0"),
        ({"logits": "classes", "answer_ids": (1,), "labels": ("a",)}, "there is one class"),
        ({"form": "past", "logits": "classes", "answer_ids": (1, 2), "labels": ("a", "b")}, "keeps no past"),
        ({"vocabulary": ()}, "empty"),
        ({"vocabulary": (2, 1)}, "rising order"),
        ({"vocabulary": (1, 37)}, "vocabulary has token 37"),
        ({"opening": (1,)}, "needs the form 'plain'"),
        ({"logits": "last", "vocabulary": (1,), "opening": (1,) * 6}, "needs longer prompts"),
        ({"length": 5}, "made for prompts of 6 tokens"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        make_reduced(tmp_path, **options)
    assert not list(tmp_path.iterdir())
