"""Reduced precision: what a file answers, what is refused, and whether a prompt's batch-mates matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import expect, reduced_cases, run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import ExactnessError, InputError
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.metrics.statistics import Accuracy
from exporter.network.model import CircuitModel
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session, run_logits
from exporter.tasks.dataset import Dataset
from exporter.verify import precision
from exporter.verify.figures import Mates, Served
from exporter.verify.precision import compare_batches, evaluate_file, require_precision

CIRCUIT = Circuit(heads=(Head(0, 1), Head(1, 0), Head(1, 1)), mlps=(0, 1), ablation=Ablation(by="global"))


def make_circuit(d_head: int = 16) -> CircuitModel:
    return rewrite_model(make_model(d_head=d_head, d_mlp=64), CIRCUIT, make_prompts(8, 6))


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(15))
@given(data=st.data())
def test_other_precisions_are_near_and_of_the_same_shape(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every combination of options; tiny random models are worse at it than real ones, hence the wide berth.

    bf16 is checked as a graph only: no processor runs it.
    """
    case, options = data.draw(reduced_cases(family))
    options = replace(
        options,
        precision=data.draw(st.sampled_from(["int8", "fp16", "bf16"])),
        weight_type=data.draw(st.sampled_from(["int7", "uint8"])),
        target=data.draw(st.sampled_from(["portable", "ort"])),
    )
    if options.precision == "int8":
        options = replace(options, scales=data.draw(st.sampled_from(["tensor", "token"])))
    path, prompts = tmp_path_factory.mktemp("precision") / "m.onnx", case.prompts
    export_onnx(rewrite_model(case.model, case.circuit, case.patching), path, options)
    onnx.checker.check_model(str(path), full_check=True)
    if options.precision == "bf16":
        return
    found, expected = torch.from_numpy(run_all(path, prompts)["logits"]), expect(case, options)
    real = prompts.mask if options.logits == "all" and prompts.mask is not None else slice(None)
    assert found.shape == expected.shape
    scale = float(expected[real].abs().max())
    assert float((found - expected)[real].abs().mean()) < 0.15 * scale


@pytest.mark.parametrize("target", ["portable", "ort"])
@pytest.mark.parametrize("scales", ["tensor", "token"])
def test_with_scales_by_token_batch_mates_do_not_matter(scales: str, target: str, tmp_path: Path) -> None:
    model, prompts = make_circuit(), make_prompts(16, 6, seed=3).input_ids
    options = GraphOptions(logits="last", precision="int8", scales=scales, target=target)
    export_onnx(model, tmp_path / "m.onnx", options)
    session = open_session(tmp_path / "m.onnx", threads=1)
    together = run_logits(session, prompts.numpy())
    alone = [run_logits(session, prompts[i : i + 1].numpy())[0] for i in range(16)]
    apart = max(float(abs(a - b).max()) for a, b in zip(alone, together, strict=True))
    assert apart < 1e-4 if scales == "token" else apart > 1e-4


def test_int8_makes_the_file_four_times_smaller_and_ort_writes_one_node_a_product(tmp_path: Path) -> None:
    model = make_circuit(d_head=64)
    sizes, nodes = {}, {}
    for name, options in {
        "fp32": GraphOptions(),
        "int8": GraphOptions(precision="int8"),
        "ort": GraphOptions(precision="int8", target="ort"),
        "fp16": GraphOptions(precision="fp16"),
    }.items():
        nodes[name] = export_onnx(model, tmp_path / f"{name}.onnx", options).nodes
        sizes[name] = (tmp_path / f"{name}.onnx").stat().st_size
    assert sizes["int8"] < sizes["fp32"] / 2.5  # norms, positions and the graph itself stay
    assert sizes["fp16"] < sizes["fp32"] / 1.8
    assert nodes["ort"] < nodes["int8"]
    domains = {name: {n.domain for n in onnx.load(tmp_path / f"{name}.onnx").graph.node} for name in ("int8", "ort")}
    assert domains == {"int8": {""}, "ort": {"", "com.microsoft"}}


@pytest.mark.parametrize("options", [{"logits": "answers"}, {"logits": "classes", "labels": ("lower", "low")}])
def test_a_file_is_evaluated_among_its_answers(options: dict[str, Any], tmp_path: Path) -> None:
    """Two answers of which the circuit prefers the first on every prompt, whatever the rest of the vocabulary says."""
    model = make_circuit()
    ids = make_prompts(6, 5).input_ids
    logits = model.next_token_logits(ids)
    order = logits.mean(dim=0).argsort()
    low, lower = int(order[1]), int(order[0])
    right = torch.where(logits[:, low] > logits[:, lower], low, lower)
    data = Dataset(ids, right)
    export_onnx(model, tmp_path / "a.onnx", GraphOptions(**options, answer_ids=(lower, low)))
    served = evaluate_file(open_session(tmp_path / "a.onnx"), model, data)
    assert (served.n, served.accuracy.accuracy, served.circuit_accuracy, served.agreement) == (6, 1.0, 1.0, 1.0)
    assert served.largest_difference < 1e-4
    export_onnx(model, tmp_path / "l.onnx", GraphOptions(logits="last"))
    assert evaluate_file(open_session(tmp_path / "l.onnx"), model, data).accuracy.accuracy < 1.0


def test_answers_of_several_tokens_are_asked_for_one_by_one(tmp_path: Path) -> None:
    model, prompts = make_circuit(), make_prompts(8, 6, padded=True, steps=2)
    export_onnx(model, tmp_path / "m.onnx", GraphOptions(form="masked", logits="last"))
    served = evaluate_file(open_session(tmp_path / "m.onnx"), model, prompts)
    assert (served.n, served.agreement) == (8, 1.0)


def test_another_of_several_right_answers_is_no_loss(tmp_path: Path) -> None:
    """Two files that answer otherwise on every prompt: where both answers are right, only agreement falls."""
    model = make_circuit()
    ids = make_prompts(8, 5).input_ids
    logits = model.next_token_logits(ids)  # (prompt, vocab)
    first, second = logits.topk(2).indices.T
    turned = Turned(first.numpy(), second.numpy(), logits.numpy())
    several = evaluate_file(turned, model, Dataset(ids, torch.stack([first, second], dim=1)))  # type: ignore[arg-type]
    assert (several.agreement, several.same_verdict, several.accuracy.accuracy) == (0.0, 1.0, 1.0)
    one = evaluate_file(turned, model, Dataset(ids, first))  # type: ignore[arg-type]
    assert (one.agreement, one.same_verdict, one.accuracy.accuracy) == (0.0, 0.0, 0.0)
    gap = (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0].double()
    p = logits.double().softmax(-1)
    expected = (p.gather(1, first[:, None]) - p.gather(1, second[:, None]))[:, 0] * gap  # both logits are exchanged
    assert several.kl == one.kl == pytest.approx(float(expected.mean()), abs=1e-6)


class Turned:
    """A session that exchanges the logits of two tokens on each prompt."""

    def __init__(self, first: np.ndarray, second: np.ndarray, logits: np.ndarray) -> None:
        self.logits = logits.copy()
        rows = np.arange(len(logits))
        self.logits[rows, first], self.logits[rows, second] = logits[rows, second], logits[rows, first]

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map={})

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input_ids", shape=["batch", "pos"])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return []

    def run(self, names: object, feeds: object) -> list[np.ndarray]:
        return [self.logits[:, None]]


def test_what_batch_mates_change_is_counted(tmp_path: Path) -> None:
    """40 prompts, alone and in batches of 32 and 8, against calls of one's own."""
    model, prompts = make_circuit(), make_prompts(40, 6, seed=3)
    for scales in ("tensor", "token"):
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(logits="last", precision="int8", scales=scales))
        session, ids = open_session(tmp_path / "m.onnx", threads=1), prompts.input_ids.numpy()
        alone = np.concatenate([run_logits(session, row[None]) for row in ids])[:, 0]
        mated = np.concatenate([run_logits(session, part) for part in (ids[:32], ids[32:])])[:, 0]
        mates = compare_batches(session, prompts)
        assert (mates.n, mates.batch) == (40, 32)
        assert mates.largest_difference == pytest.approx(float(abs(alone - mated).max()))
        assert mates.changed == pytest.approx((alone.argmax(-1) != mated.argmax(-1)).mean())
        assert (mates.largest_difference < 1e-4) == (scales == "token")


def test_answers_that_batch_mates_change_are_counted_apart_from_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that moves between two right answers is still right; among answers only, ids are spread."""
    logits = {1: torch.tensor([[[3.0, 2.0]], [[0.0, 1.0]]]), 2: torch.tensor([[[2.0, 3.0]], [[1.0, 0.5]]])}
    ids = torch.tensor([[4, 5], [6, 7]])
    monkeypatch.setattr(precision, "read_answer_ids", lambda _: np.array([8, 9]))
    monkeypatch.setattr(precision, "read_vocab_size", lambda _: 10)

    def answer(_session: object, part: Dataset) -> torch.Tensor:
        rows = [int(first == 6) for first in part.input_ids[:, 0]]
        return logits[len(part)][rows]

    monkeypatch.setattr(precision, "_answer_logits", answer)
    data = Dataset(ids, torch.tensor([[8, 9], [9, -1]]))
    assert compare_batches(None, data) == Mates(2, 2, 1.0, 1.0, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("changed", "passes"), [(0.0, True), (0.01, True), (0.02, False), (float("nan"), False)])
def test_the_gate_refuses_what_batch_mates_decide(changed: float, passes: bool) -> None:
    found = replace(served(1.0, 0.9, 0.9), mates=Mates(200, 32, 0.1, 0.5, changed))
    if passes:
        require_precision(found, GraphOptions(precision="int8"))
        return
    with pytest.raises(ExactnessError, match=r"% of 200 test prompts are right or wrong by .* try --int8-scales token"):
        require_precision(found, GraphOptions(precision="int8"))


def served(same: float, accuracy: float, ours: float, kl: float = 0.001) -> Served:
    return Served(200, Accuracy.of(round(200 * accuracy), 200), ours, 0.5, 0.1, same, kl)


@pytest.mark.parametrize(
    ("precision", "found", "passes"),
    [
        ("int8", served(1.0, 0.9, 0.9), True),
        ("int8", served(0.99, 0.89, 0.9), True),
        ("int8", served(0.985, 0.9, 0.9), False),
        ("int8", served(0.995, 0.88, 0.9), False),
        ("int8", served(1.0, 0.9, 0.9, kl=0.02), False),
        ("int8", served(1.0, 0.9, 0.9, kl=float("nan")), False),
        ("fp16", served(0.5, 0.9, 0.9), False),
        ("fp32", served(0.5, 0.1, 0.9), True),  # `verify` has judged it
    ],
)
def test_the_gate_of_precision(precision: str, found: Served, passes: bool) -> None:
    options = GraphOptions(precision=precision)
    if passes:
        require_precision(found, options)
        return
    with pytest.raises(ExactnessError, match=rf"in {precision} the circuit is right or wrong .* no file was left: "):
        require_precision(found, options)


def test_scales_by_token_are_for_int8() -> None:
    with pytest.raises(InputError, match="for int8, not fp32"):
        GraphOptions(scales="token")
