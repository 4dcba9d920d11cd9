"""Inputs that a file must refuse or answer: no rows, no past, masks and pasts that do not fit, ids out of range."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiers import as_slow, diagonal
from tiny import VOCAB, make_model, make_prompts
from waits import HANG

from exporter.circuit import Ablation, Circuit, Head
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session

Arrays = dict[str, np.ndarray[Any, Any]]

HEADS = (Head(0, 1), Head(1, 0), Head(1, 3), Head(2, 2))  # one, two, one
LENGTH = 5
KNOWN = tuple(range(2, VOCAB, 3))
FORMS: dict[str, GraphOptions] = {
    "plain": GraphOptions(),
    "last": GraphOptions(logits="last"),
    "pinned": GraphOptions(logits="last", length=LENGTH),
    "opening": GraphOptions(logits="last", length=LENGTH, vocabulary=KNOWN, opening=KNOWN[:2]),
    "answers": GraphOptions(logits="answers", answer_ids=(3, 7), vocabulary=KNOWN),
    "masked": GraphOptions(form="masked"),
    "masked_last": GraphOptions(form="masked", logits="last", vocabulary=KNOWN),
    "past": GraphOptions(form="past"),
    "past_last": GraphOptions(form="past", logits="last", vocabulary=KNOWN),
    "optimum": GraphOptions(form="past", logits="last", optimum=True),
    "external": GraphOptions(form="past", logits="last", external_data=True),
    "int8": GraphOptions(form="masked", logits="last", precision="int8"),
    "int8_token": GraphOptions(form="past", precision="int8", scales="token", weight_type="uint8"),
    "ort": GraphOptions(logits="last", precision="int8", target="ort"),
    "opset_17": GraphOptions(form="past", logits="last", vocabulary=KNOWN, opset=17),
    "opset_17_opening": GraphOptions(logits="last", length=LENGTH, vocabulary=KNOWN, opening=KNOWN[:2], opset=17),
    "opset_17_int8": GraphOptions(form="past", precision="int8", scales="token", opset=17),
    "fp16": GraphOptions(form="masked", logits="last", precision="fp16"),
}
NO_ROWS = """
import json, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
found = {}
for path, pos in json.loads(sys.argv[1]):
    print(path, pos, file=sys.stderr, flush=True)  # the last line names the file that a crash is of
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds, rows = {}, 2 if pos == 0 else 0
    for value in session.get_inputs():
        shape = [rows, pos] if len(value.shape) == 2 else [rows, value.shape[1], 0, value.shape[3]]
        kind = np.int64 if len(value.shape) == 2 else np.float16 if "float16" in value.type else np.float32
        feeds[value.name] = np.zeros(shape, kind)
    try:
        found[f"{path} {pos}"] = list(session.run(["logits"], feeds)[0].shape)
    except Exception as error:
        found[f"{path} {pos}"] = str(error)[:80]
print(json.dumps(found))
"""


def rewrite(family: str = "gpt2", *, heads: Sequence[Head] = HEADS, positions: int = 12) -> CircuitModel:
    model = make_model(family, n_layers=3, n_heads=4, positions=positions)
    circuit = Circuit(heads=tuple(heads), mlps=(1,), ablation=Ablation(by="global"))
    return rewrite_model(model, circuit, make_prompts(8, min(LENGTH, positions)))


def write(folder: Path, form: str, family: str = "gpt2", **options: Any) -> tuple[CircuitModel, Any]:
    """A rewritten model, and a session of its file."""
    model = rewrite(family, **options)
    export_onnx(model, folder / "m.onnx", FORMS[form])
    return model, open_session(folder / "m.onnx", threads=1)


def pasts(session: Any, batch: int, *lengths: int) -> Arrays:
    """Keys and values of earlier calls, zeros; one length for all inputs, or one for each."""
    inputs = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    lengths = lengths if len(lengths) > 1 else lengths * len(inputs)
    return {
        value.name: np.zeros((batch, value.shape[1], length, value.shape[3]), np.float32)
        for value, length in zip(inputs, lengths, strict=True)
    }


def run(session: Any, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], past: Arrays | None = None) -> Any:
    feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64), **(past or {})}
    if any(value.name == "position_ids" for value in session.get_inputs()):
        feeds["position_ids"] = np.zeros_like(ids)  # not read
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("family", [as_slow("gpt2"), "llama"])
def test_no_rows_give_no_rows_and_no_tokens_end_no_process(family: str, tmp_path: Path) -> None:
    model, cases = rewrite(family), []
    for name, options in FORMS.items():
        export_onnx(model, tmp_path / f"{name}.onnx", options)
        cases += [(f"{name}.onnx", LENGTH), (f"{name}.onnx", 0)]
    command = [sys.executable, "-c", NO_ROWS, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, cwd=tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr[-300:])
    found = json.loads(done.stdout)
    for name, options in FORMS.items():
        width = 2 if options.answer_ids else VOCAB
        assert found[f"{name}.onnx {LENGTH}"] == [0, LENGTH if options.logits == "all" else 1, width], name
        assert found[f"{name}.onnx 0"] == [2, 0, width] or "ONNXRuntimeError" in found[f"{name}.onnx 0"], name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["masked", "masked_last", "int8"])
def test_a_mask_of_another_shape_than_the_ids_is_refused(form: str, family: str, tmp_path: Path) -> None:
    _, session = write(tmp_path, form, family)
    ids = np.full((2, 3), KNOWN[0], np.int64)
    for shape in ((2, 4), (2, 2), (2, 1), (1, 3), (3, 3), (1, 1), (3, 2), (1, 6), (6, 1)):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            run(session, ids, np.ones(shape))
    for rows, columns in (((2, 1), (2, 5)), ((1, 5), (5, 1)), ((1, 3), (2, 3)), ((2, 1), (1, 1))):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            run(session, np.full(rows, KNOWN[0], np.int64), np.ones(columns))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["past", "past_last", "optimum", "int8_token"])
def test_a_mask_or_past_of_the_wrong_length_is_refused(form: str, family: str, tmp_path: Path) -> None:
    _, session = write(tmp_path, form, family)
    one, three = (np.full((2, n), KNOWN[0], np.int64) for n in (1, 3))
    for ids, past, shapes in (
        (one, 4, [(2, 1), (2, 4), (2, 6), (1, 5), (1, 1), (4, 5)]),
        (three, 0, [(2, 1), (2, 2), (2, 4), (1, 3), (3, 3), (1, 1)]),
        (one, 0, [(2, 5), (1, 1), (1, 5)]),
    ):
        for shape in shapes:
            with pytest.raises(Exception, match="ONNXRuntimeError"):
                run(session, ids, np.ones(shape), pasts(session, 2, past))
    n = len(pasts(session, 1, 0))
    for lengths in (
        [0, 0, *[4] * (n - 2)],
        [4] * (n - 1) + [0],
        [0] + [4] * (n - 1),
        [4, 4] + [0] * (n - 2),
        [1, *[4] * (n - 1)],
    ):
        for total in (1, 2, 5):
            with pytest.raises(Exception, match="ONNXRuntimeError"):
                run(session, one, np.ones((2, total)), pasts(session, 2, *lengths))
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(session, one, np.ones((2, 5)), pasts(session, 1, 4))


def test_without_attention_earlier_calls_leave_the_mask_alone(tmp_path: Path) -> None:
    model, session = write(tmp_path, "past", heads=())
    ids = np.array([[2, 5, 8], [5, 2, 11]], np.int64)
    expected = model(torch.from_numpy(ids)).numpy()
    for n in (1, 2, 3):
        found = run(session, ids[:, -n:], np.ones((2, 3)))
        np.testing.assert_allclose(found, expected[:, -n:], rtol=1e-4, atol=1e-4)
    for shape in ((2, 1), (2, 2), (1, 3), (3, 3), (1, 1)):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            run(session, ids, np.ones(shape))


@pytest.mark.parametrize(
    ("form", "family"),
    diagonal(
        ("masked", "masked_last", "past", "past_last", "optimum", "opset_17", "int8", "fp16"),
        ("gpt2", "llama", "qwen3"),
    ),
)
def test_a_row_of_padding_alone_is_defined_and_leaves_the_others(form: str, family: str, tmp_path: Path) -> None:
    model, session = write(tmp_path, form, family)
    ids = np.array([[2, 5, 8], [5, 2, 11], [8, 8, 2]], np.int64)
    mask = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1]])
    past = pasts(session, 3, 0)
    logits = run(session, ids, mask, past)
    assert np.isfinite(logits).all()
    if FORMS[form].precision != "fp32":
        return
    for row, n in ((1, 2), (2, 3)):
        expected = model.next_token_logits(torch.from_numpy(ids[row : row + 1, -n:]))[0]
        np.testing.assert_allclose(logits[row, -1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["masked", "masked_last", "past_last"])
def test_any_value_but_0_in_a_mask_is_a_token(form: str, tmp_path: Path) -> None:
    _, session = write(tmp_path, form)
    ids, mask = np.array([[2, 5, 8, 11]], np.int64), np.array([[0, 1, 1, 1]])
    expected = run(session, ids, mask, pasts(session, 1, 0))[:, -3:]
    for values in ([0, 2, 1, 7], [0, -1, 1, -1], [0, 2**40, -(2**63), 2**63 - 1]):
        found = run(session, ids, np.array([values]), pasts(session, 1, 0))[:, -3:]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("heads", [HEADS, ()], ids=["attention", "none"])
@pytest.mark.parametrize("form", ["plain", "last", "masked", "past"])
def test_ids_out_of_range_are_refused(form: str, heads: tuple[Head, ...], tmp_path: Path) -> None:
    _, session = write(tmp_path, form, heads=heads)
    for token in (VOCAB, -1, -VOCAB, -VOCAB - 1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, -(2**63), -(2**32)):
        feeds = {"input_ids": np.array([[1, 2, token]], np.int64)}
        if form != "plain" and form != "last":
            feeds |= {"attention_mask": np.ones((1, 3), np.int64), **pasts(session, 1, 0)}
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(["logits"], feeds)


@pytest.mark.parametrize(
    ("family", "positions"), [("gpt2", 12), ("llama", 12), ("gpt_neox", 12), ("gpt2", 1), ("llama", 1)]
)
@pytest.mark.parametrize("form", ["plain", "last", "masked", "past"])
def test_beyond_the_models_positions_it_is_refused(form: str, family: str, positions: int, tmp_path: Path) -> None:
    _, session = write(tmp_path, form, family, positions=positions)
    for length in (positions, positions + 1, positions + 7):
        feeds = {"input_ids": np.full((2, length), 2, np.int64)}
        if form in ("masked", "past"):
            feeds |= {"attention_mask": np.ones((2, length), np.int64), **pasts(session, 2, 0)}
        if length == positions:
            assert np.isfinite(session.run(["logits"], feeds)[0]).all()
            continue
        with pytest.raises(Exception, match=r"ONNXRuntimeError|invalid dimensions"):
            session.run(["logits"], feeds)
