"""The Python API: what is no value of a parameter is named at the call, in our own words, and never far away."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import make_dense
from tiny import VOCAB, make_prompts

from exporter import (
    MLP,
    Circuit,
    Dataset,
    Decision,
    ExportCircuitError,
    GraphOptions,
    Head,
    Job,
    LanguageModel,
    compare_latency,
    evaluate_circuit,
    export_onnx,
    find_circuit,
    load_model,
    load_task,
    rewrite_model,
    run_job,
    verify_export,
)
from exporter.circuit import Ablation, SearchRecord
from exporter.tasks import SplitSizes

CIRCUIT = Circuit(heads=((0, 1), (2, 3)), mlps=(1,))
PROMPTS = make_prompts(6, 5)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_dense()


def refuse(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ExportCircuitError, match=message) as found:
        call()
    assert len(str(found.value)) < 300 and "\n" not in str(found.value)


def test_pairs_and_lists_are_taken() -> None:
    assert CIRCUIT.heads == (Head(0, 1), Head(2, 3)) and CIRCUIT.mlps == (1,)
    same = Circuit(heads=[[2, 3], Head(0, 1)], mlps=[MLP(1)])
    assert same == CIRCUIT and hash(same) == hash(CIRCUIT)
    assert Circuit(heads={(0, 1), (2, 3)}, mlps={1}) == CIRCUIT
    numbers = Circuit(heads=[(np.int64(0), np.int32(1)), (2, 3)], mlps=np.array([1]))
    assert numbers == CIRCUIT and type(numbers.mlps[0]) is int and type(numbers.heads[0].layer) is int
    assert Circuit(heads=(h for h in CIRCUIT.heads), mlps=range(1, 2)) == CIRCUIT


GOOD: dict[str, Any] = {"heads": ((0, 1),), "mlps": (1,)}
BAD_CIRCUITS: list[tuple[dict[str, Any], str]] = [
    ({"heads": [(7, 10, 1)]}, r"a head is Head\(layer, index\) or a pair \(layer, index\), not \(7, 10, 1\)"),
    ({"heads": [7]}, "a head is .* not 7"),
    ({"heads": ["a7.h10"]}, "a head is .* not 'a7.h10'"),
    ({"heads": "a7"}, "heads must be a list or tuple, not str 'a7'"),
    ({"heads": None}, "heads must be a list or tuple, not None"),
    ({"heads": 3}, "heads must be a list or tuple, not int 3"),
    ({"heads": {(0, 1): 2}}, "heads must be a list or tuple, not dict"),
    ({"heads": [(-1, 0)]}, "a head's layer must be a whole number from 0, not int -1"),
    ({"heads": [(0, -1)]}, "a head's index must be a whole number from 0, not int -1"),
    ({"heads": [(0, True)]}, "a head's index must be a whole number from 0, not True"),
    ({"heads": [(0, 1.0)]}, "a head's index must be a whole number from 0, not float 1.0"),
    ({"heads": [(0, "1")]}, "a head's index must be a whole number from 0, not str '1'"),
    ({"heads": [(0, math.nan)]}, "a head's index must be a whole number"),
    ({"heads": [(0, None)]}, "a head's index must be a whole number from 0, not None"),
    ({"heads": [(0, 1), (0, 1)]}, "heads has a0.h1 twice; give each once"),
    ({"heads": [Head(0, 1), (0, 1)]}, "heads has a0.h1 twice"),
    ({"heads": [MLP(1)]}, "a head is"),
    ({"mlps": [1, 1]}, "mlps has m1 twice"),
    ({"mlps": [MLP(1), 1]}, "mlps has m1 twice"),
    ({"mlps": [-1]}, "an MLP's layer must be a whole number from 0"),
    ({"mlps": [True]}, "an MLP's layer must be a whole number from 0, not True"),
    ({"mlps": [1.5]}, "an MLP's layer must be a whole number"),
    ({"mlps": "12"}, "mlps must be a list or tuple"),
    ({"mlps": 1}, "mlps must be a list or tuple"),
    ({"mlps": [Head(0, 1)]}, "mlps are layers, and a0.h1 is a head"),
    ({"ablation": "median"}, "ablation is 'median'; choose from mean, zero"),
    ({"ablation": None}, "ablation is None"),
    ({"ablation": ["mean"]}, "ablation is"),
    ({"ablation": Ablation}, "ablation is"),
    ({"neurons": {2: [1, 1]}}, "neurons has m2.n1 twice"),
    ({"neurons": {1: [0]}}, "mlps and neurons has m1 twice"),
    ({"neurons": {2: [-1]}}, "each of neurons must be a whole number from 0"),
    ({"neurons": {2: "12"}}, "neurons must be a list or tuple"),
    ({"neurons": {"2": [1]}}, "a neuron's layer must be a whole number from 0, not str '2'"),
    ({"neurons": [2, 3]}, "neurons are a mapping from layers to hidden units, without 2"),
    ({"neurons": 3}, "neurons must be a list or tuple"),
]
BAD_RECORDS = [
    ({"order": ""}, "order is ''"),
    ({"order": 1}, "order must be str, not int 1"),
    ({"alpha": "0.1"}, "alpha must be a finite number, not str '0.1'"),
    ({"alpha": math.inf}, "alpha must be a finite number"),
    ({"kl": True}, "kl must be a finite number, not True"),
    ({"trace": [1]}, "each of trace must be Decision, not int 1"),
    ({"trace": "abc"}, "trace must be a list or tuple"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CIRCUITS, ids=str)
def test_what_is_no_circuit_is_refused_where_it_is_made(changes: dict[str, Any], message: str) -> None:
    refuse(lambda: Circuit(**(GOOD | changes)), message)


@pytest.mark.parametrize(("changes", "message"), BAD_RECORDS, ids=str)
def test_what_is_no_record_of_a_search_is_refused(changes: dict[str, Any], message: str) -> None:
    refuse(lambda: SearchRecord(**changes), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"by": "all"}, "mean is 'all'; choose from position, global"), ({"align": 1}, "align is 1")],
)
def test_what_is_no_ablation_is_refused(changes: dict[str, Any], message: str) -> None:
    refuse(lambda: Ablation(**changes), message)


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", None, (1,), math.inf])
def test_components_are_whole_numbers(value: Any) -> None:
    refuse(lambda: Head(value, 0), "a head's layer must be a whole number from 0")
    refuse(lambda: Head(0, value), "a head's index must be a whole number from 0")
    refuse(lambda: MLP(value), "an MLP's layer must be a whole number from 0")
    refuse(lambda: Decision(value, 0.0, 0.0, removed=True), "a decision's component must be Head or MLP")
    if not isinstance(value, bool):
        refuse(lambda: Decision(MLP(0), 0.0, 0.0, removed=value), "removed must be bool")


IDS, ANSWERS = torch.tensor([[1, 2], [3, 4]]), torch.tensor([1, 2])
BAD_SETS: list[tuple[tuple[Any, ...], str]] = [
    (([[1, 2]], ANSWERS), "input_ids must be Tensor, not list"),
    ((IDS.numpy(), ANSWERS), "input_ids must be Tensor, not ndarray"),
    ((IDS, [1, 2]), "answer_ids must be Tensor, not list"),
    ((IDS, None), "answer_ids must be Tensor, not None"),
    ((IDS.float(), ANSWERS), "token ids must be int64"),
    ((IDS.int(), ANSWERS), "token ids must be int64"),
    ((IDS[0], ANSWERS), r"input_ids must be \(prompt, pos\)"),
    ((IDS[:0], ANSWERS[:0]), "not empty"),
    ((IDS - 5, ANSWERS), "token ids start at 0"),
    ((IDS, ANSWERS - 7), "token ids start at 0"),
    ((IDS, ANSWERS[:1]), "for 2 prompts"),
    ((IDS, ANSWERS, [True]), "mask must be Tensor or None, not list"),
    ((IDS, ANSWERS, torch.ones(2, 2)), "mask must be bool"),
    ((IDS, ANSWERS, torch.tensor([[True, False], [True, True]])), "padding must stand on the left"),
    ((IDS, ANSWERS, None, [1]), "choice_ids must be Tensor or None, not list"),
    ((IDS, ANSWERS, None, torch.full((2, 3), -1)), "no choice for some prompts"),
    ((IDS, ANSWERS, None, torch.zeros(2, 3)), "choice_ids must be"),
]


@pytest.mark.parametrize(("given", "message"), BAD_SETS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_dataset(given: tuple[Any, ...], message: str) -> None:
    refuse(lambda: Dataset(*given), message)


def test_graph_options() -> None:
    same = GraphOptions(logits="answers", answer_ids=[3, 1], vocabulary=[np.int64(1), 3], form="masked")
    assert same.answer_ids == (3, 1) and same.vocabulary == (1, 3) and type(same.vocabulary[0]) is int
    for options, message in (
        ({"form": 1}, "form is 1; choose from plain, masked, past"),
        ({"form": ["plain"]}, "form is"),
        ({"answer_ids": "ab", "logits": "answers"}, "answer_ids must be a list or tuple"),
        ({"answer_ids": 3, "logits": "answers"}, "answer_ids must be a list or tuple"),
        ({"answer_ids": (-1,), "logits": "answers"}, "each of answer_ids must be a whole number from 0"),
        ({"answer_ids": (1.0,), "logits": "answers"}, "each of answer_ids must be a whole number"),
        ({"vocabulary": ("a", 1)}, "each of vocabulary must be a whole number"),
        ({"vocabulary": (True,)}, "each of vocabulary must be a whole number"),
        ({"length": 0}, "length must be a whole number from 1"),
        ({"length": 2.5}, "length must be a whole number from 1"),
        ({"opening": None}, "opening must be a list or tuple"),
        ({"external_data": "yes"}, "external_data must be bool, not str 'yes'"),
    ):
        refuse(lambda options=options: GraphOptions(**options), message)


def test_find_circuit(model: LanguageModel) -> None:
    def find(*given: Any, **options: Any) -> Callable[[], Circuit]:
        return lambda: find_circuit(*(given or (model, PROMPTS, PROMPTS)), **({"alpha": 0.1} | options))

    refuse(find(model.hf, PROMPTS, PROMPTS), "model must be what load_model gives, or a CircuitModel, not GPT2LMHead")
    refuse(find("gpt2", PROMPTS, PROMPTS), "model must be what load_model gives")
    refuse(find(model, PROMPTS.input_ids, PROMPTS), "patching must be Dataset, not Tensor")
    refuse(find(model, PROMPTS, None), "selection must be Dataset, not None")
    large = Dataset(PROMPTS.input_ids + VOCAB, PROMPTS.answer_ids)
    refuse(find(model, large, PROMPTS), f"input_ids has token .*, and this model's go from 0 to {VOCAB - 1}")
    refuse(find(model, PROMPTS, Dataset(PROMPTS.input_ids, PROMPTS.answer_ids + VOCAB)), "answer_ids has token")
    refuse(find(model, make_prompts(3, 30), make_prompts(3, 30)), "prompts of 30 tokens are longer than the model's 24")
    for alpha in ("0.1", None, True, [0.1]):
        refuse(find(alpha=alpha), "alpha must be int or float")
    for alpha in (0, -1.0, math.nan, math.inf):
        refuse(find(alpha=alpha), "give a threshold above 0")
    refuse(find(ablation="none"), "ablation is 'none'; choose from mean, zero")
    refuse(find(ablation=None), "ablation is None; choose from mean, zero")
    refuse(find(mean="median"), "mean is 'median'")
    refuse(find(align="centre"), "align is 'centre'")
    refuse(lambda: Ablation(by="median"), "mean is 'median'")
    refuse(lambda: Ablation(align="centre"), "align is 'centre'")
    refuse(find(mlps=1), "mlps must be bool, not int 1")
    for limit in (0, -1, 1.5, True, "1"):
        refuse(find(memory_limit=limit), "memory_limit must be a whole number from 1")


def test_the_stages_after_it(model: LanguageModel, tmp_path: Path) -> None:
    refuse(lambda: rewrite_model(model.hf, CIRCUIT, PROMPTS), "model must be what load_model gives")
    refuse(lambda: rewrite_model(model, [(0, 1)], PROMPTS), "circuit must be Circuit, not list")
    refuse(lambda: rewrite_model(model, CIRCUIT, PROMPTS.input_ids), "patching must be Dataset")
    refuse(lambda: rewrite_model(model, Circuit(heads=((9, 0),), mlps=()), PROMPTS), "circuit names head a9.h0")
    small, path = rewrite_model(model, CIRCUIT, PROMPTS), tmp_path / "m.onnx"
    refuse(lambda: export_onnx(model, path), "model must be CircuitModel, not LanguageModel")
    refuse(lambda: export_onnx(small, path, {"form": "plain"}), "options must be GraphOptions, not dict")
    refuse(lambda: export_onnx(small, tmp_path / "none" / "m.onnx"), "a file in a folder that is there")
    refuse(lambda: export_onnx(small, tmp_path), "give the name of a file")
    refuse(lambda: export_onnx(small, None), "path must be str or Path, not None")
    refuse(lambda: export_onnx(small, path, metadata={"a": 1}), "metadata's a must be str, not int 1")
    refuse(lambda: export_onnx(small, path, GraphOptions(vocabulary=(1, VOCAB))), f"vocabulary has token {VOCAB}")
    assert not list(tmp_path.iterdir())
    export_onnx(small, path)
    sets: dict[str, Any] = {"patching": PROMPTS, "prompts": PROMPTS}
    good: dict[str, Any] = {"model": model, "circuit": CIRCUIT, "rewritten": small, "path": path} | sets
    verify_export(**good)
    for name, value in (("model", model.hf), ("circuit", "c"), ("rewritten", model), ("patching", 1), ("prompts", [])):
        refuse(lambda changes={name: value}: verify_export(**(good | changes)), f"{name} must be")
    refuse(lambda: verify_export(**(good | {"path": tmp_path / "n.onnx"})), "no file")
    dense = model.dense
    refuse(lambda: evaluate_circuit(dense, small.answer_logits, PROMPTS), "dense must be a function such as")
    refuse(lambda: evaluate_circuit(dense.answer_logits, small, PROMPTS), "circuit must be a function such as")
    refuse(lambda: evaluate_circuit(dense.answer_logits, None, PROMPTS), "circuit must be a function")
    refuse(lambda: evaluate_circuit(dense.answer_logits, small.answer_logits, IDS), "dataset must be Dataset")


def test_a_circuit_model_reads_token_ids(model: LanguageModel) -> None:
    small = rewrite_model(model, Circuit(heads=((0, 1),), mlps=(), ablation=Ablation(by="global")), PROMPTS)
    for call in (small, small.answer_logits, small.next_token_logits):
        for ids, message in (
            ([[1, 2]], "input_ids must be Tensor, not list"),
            (torch.tensor([1, 2]), r"input_ids must be \(batch, pos\) int64, not \(2,\) torch.int64"),
            (torch.ones(1, 2), r"input_ids must be \(batch, pos\) int64"),
            (torch.ones(0, 2, dtype=torch.int64), r"input_ids must be \(batch, pos\)"),
            (torch.tensor([[1, VOCAB]]), f"input_ids has token {VOCAB}, and this model's go from 0 to {VOCAB - 1}"),
            (torch.tensor([[-1, 1]]), "input_ids has token -1"),
            (torch.ones(1, 25, dtype=torch.int64), "longer than the model's 24 positions"),
        ):
            refuse(lambda call=call, ids=ids: call(ids), message)
        refuse(lambda call=call: call(IDS, torch.ones(2, 3, dtype=torch.bool)), r"mask must be bool and \(2, 2\)")
        refuse(lambda call=call: call(IDS, torch.ones(2, 2)), "mask must be bool")
    for n_steps in (0, 3, 1.0, True):
        refuse(lambda n=n_steps: small.answer_logits(IDS, None, n), "n_steps must be a whole number from 1 to 2")


def test_compare_latency(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(rewrite_model(model, Circuit(heads=((0, 1),), mlps=(), ablation=Ablation(by="global")), PROMPTS), path)
    good: dict[str, Any] = {"dense": path, "circuit": path, "input_ids": IDS}
    for changes, message in (
        ({"dense": tmp_path / "n.onnx"}, "no file"),
        ({"circuit": None}, "a path must be str or Path"),
        ({"input_ids": [[1]]}, "input_ids must be Tensor"),
        ({"input_ids": IDS.float()}, r"input_ids must be \(batch, pos\) int64"),
        ({"mask": torch.ones(2, 2)}, "mask must be bool"),
        ({"blocks": 0}, "blocks must be a whole number from 1"),
        ({"threads": -1}, "threads must be a whole number from 1"),
        ({"threads": 0}, "threads must be a whole number from 1"),
        ({"block_seconds": "1"}, "block_seconds must be int or float"),
    ):
        refuse(lambda changes=changes: compare_latency(**(good | changes)), message)


def test_loading() -> None:
    refuse(lambda: load_model(""), "the model's name is empty")
    for source in (None, 3, ["auto"], b"auto", True):
        refuse(lambda source=source: load_model(source), "source must be str or Path")
    refuse(lambda: load_model("bundled", revision=3), "revision must be str or None, not int 3")
    refuse(lambda: load_model("bundled", dtype=torch.float32), "unknown dtype torch.float32")
    refuse(lambda: load_model("bundled", dtype=["auto"]), "unknown dtype")


def test_load_task(bundled: LanguageModel) -> None:
    tokenizer: Any = bundled.tokenizer
    for name in (None, 3, ["acronym"]):
        refuse(lambda name=name: load_task(name, tokenizer), "name must be str or Path")
    refuse(lambda: load_task("", tokenizer), "unknown task ''")
    refuse(lambda: load_task("acronym", None), "tokenizer must have encode and decode")
    refuse(lambda: load_task("acronym", bundled), "tokenizer must have encode and decode")
    for seed in (-1, 1.5, True, "0"):
        refuse(lambda seed=seed: load_task("acronym", tokenizer, seed=seed), "seed must be a whole number from 0")
    refuse(lambda: load_task("acronym", tokenizer, sizes=(1, 2, 3)), "sizes must be SplitSizes, not tuple")
    refuse(lambda: load_task("acronym", tokenizer, letters=True), "letters is True")
    refuse(lambda: load_task("acronym", tokenizer, letters=[1]), "letters is")
    refuse(lambda: load_task("acronym", tokenizer, nonsense=1), "has no parameter 'nonsense'")


BAD_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"task": 3}, "task must be str"),
    ({"task": ""}, "unknown task"),
    ({"out": 3}, "out must be Path or None"),
    ({"bundle": ["b"]}, "bundle must be Path or None"),
    ({"circuit": Circuit(**GOOD)}, "circuit must be Path or None"),
    ({"model": None}, "model must be str"),
    ({"model": " "}, "--model is empty"),
    ({"revision": 1}, "revision must be str or None"),
    ({"alpha": "0.1"}, "alpha must be int or float or None"),
    ({"alpha": math.nan}, "give a threshold above 0"),
    ({"ablation": "none"}, "ablation is 'none'; choose from mean, zero"),
    ({"ablation": 1}, "ablation is 1"),
    ({"mlps": None}, "mlps must be bool"),
    ({"seed": -1}, "seed must be a whole number from 0"),
    ({"seed": 0.5}, "seed must be a whole number from 0"),
    ({"sizes": 3}, "sizes must be SplitSizes"),
    ({"parameters": []}, "parameters must be dict"),
    ({"memory_limit": 0}, "memory_limit must be a whole number from 1"),
    ({"memory_limit": math.inf}, "memory_limit must be a whole number from 1"),
    ({"device": "tpu"}, "--device is 'tpu'; choose from cpu, cuda"),
    ({"dtype": "int8"}, "--dtype is 'int8'"),
    ({"resume": 1}, "resume must be bool"),
    ({"logits": None}, "--logits is None"),
    ({"vocab": "some"}, "--vocab is 'some'; choose from full, task"),
    ({"target": "x"}, "--target is 'x'"),
    ({"precision": "int4"}, "--precision is 'int4'"),
    ({"scales": "x"}, "--int8-scales is 'x'"),
    ({"weights": "int4"}, "--weights is 'int4'; choose from uint8, int7, int8"),
    ({"external_data": "no"}, "external_data must be bool"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_JOBS, ids=str)
def test_what_is_no_job(changes: dict[str, Any], message: str) -> None:
    refuse(lambda: Job(**({"task": "acronym", "out": Path("m.onnx")} | changes)), message)


def test_jobs_take_names_as_text() -> None:
    job = Job(task="acronym", out="m.onnx", bundle="b", circuit=None)
    assert (job.out, job.bundle) == (Path("m.onnx"), Path("b"))
    assert Job(task=Path("t.csv"), out=None).task == "t.csv"
    refuse(lambda: run_job("acronym"), "job must be Job, not str 'acronym'")
    refuse(lambda: run_job(Job(task="acronym", out=None)), "neither out nor bundle")
    for size in (0, -1, 1.5, True, "3"):
        refuse(lambda size=size: SplitSizes(test=size), "the test set cannot have")
