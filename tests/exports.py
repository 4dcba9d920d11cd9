"""Exported graphs: drawn with any combination of options, run, compared, damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny import VOCAB, Case, cases, hook_surgery, realign

from exporter.graph.options import GraphOptions
from exporter.runtime.session import open_session
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import hooked_logits


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The gate's measure: 1e-4 on logits of ordinary scale, else relative."""
    limit = 1e-4 * max(1.0, float(expected.abs().max()) / 30)
    assert float((found - expected).abs().max()) <= limit


def corrupt(path: Path, name: str, by: float) -> None:
    """Add to one element of one initializer, whose name starts so."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name.startswith(name))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)


def run_all(path: Path, prompts: Dataset) -> dict[str, np.ndarray[Any, Any]]:
    """Every output of a file, by name, in one call."""
    session = open_session(path, threads=1)
    feeds: dict[str, np.ndarray[Any, Any]] = {"input_ids": prompts.input_ids.numpy()}
    for value in session.get_inputs()[1:]:
        if value.name == "attention_mask":
            mask = torch.ones_like(prompts.input_ids) if prompts.mask is None else prompts.mask.long()
            feeds[value.name] = mask.numpy()
        else:
            _, n_kv, _, d_head = value.shape
            dtype = np.float16 if "float16" in value.type else np.float32
            feeds[value.name] = np.zeros((len(prompts), n_kv, 0, d_head), dtype)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def expect(case: Case, options: GraphOptions) -> torch.Tensor:
    """The hooked model's logits, those that the options leave."""
    circuit, prompts = case.circuit, case.prompts
    logits = hooked_logits(
        case.model, hook_surgery(case.model, circuit, case.patching), prompts.input_ids, prompts.mask
    )
    logits = logits if options.logits == "all" else logits[:, -1:]
    logits = logits[:, :, list(options.answer_ids)] if options.answer_ids else logits
    return logits[:, 0] if options.logits == "classes" else logits


@st.composite
def reduced_cases(draw: st.DrawFn, family: str) -> tuple[Case, GraphOptions]:
    """Any case of a family with any combination of options."""
    case = draw(cases(families=(family,), padded=None))
    prompts, form, length, opening = case.prompts, "masked", None, ()
    if prompts.mask is None:
        form = draw(st.sampled_from(["plain", "masked", "past"]))
    elif draw(st.booleans()):
        form = "past"
    circuit = realign(case.circuit, "left") if form == "past" else case.circuit
    logits = draw(st.sampled_from(["all", "last", "answers", *([] if form == "past" else ["classes"])]))
    n_least = {"answers": 1, "classes": 2}.get(logits, 0)
    answers = draw(st.lists(st.integers(0, VOCAB - 1), min_size=n_least, unique=True)) if n_least else ()
    if form == "plain" and draw(st.booleans()):
        length = prompts.length
    vocabulary = None
    if draw(st.booleans()):
        shared = draw(st.integers(0, prompts.length - 1)) if length and logits != "all" else 0
        ids = prompts.input_ids.clone()
        ids[:, :shared] = ids[:1, :shared]
        prompts, opening = replace(prompts, input_ids=ids), tuple(ids[0, :shared].tolist())
        vocabulary = tuple(sorted({*ids.flatten().tolist(), *draw(st.lists(st.integers(0, VOCAB - 1)))}))
    options = GraphOptions(
        form=form,
        logits=logits,
        answer_ids=tuple(answers),
        labels=tuple(f"w{token}" for token in answers) if logits == "classes" else (),
        vocabulary=vocabulary,
        length=length,
        opening=opening,
        external_data=draw(st.booleans()),
    )
    return replace(case, circuit=circuit, prompts=prompts), options
