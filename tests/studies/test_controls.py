"""Controls, on a model whose task is planted: hidden units 0 and 1 of the last MLP do it, and nothing else does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from hypothesis import given, settings
from tiny import Case, cases, make_model

from exporter.circuit import Ablation, Circuit, Head, SearchRecord
from exporter.errors import InputError, UsageError
from exporter.evidence.controls import Controls
from exporter.job.build import Found
from exporter.job.clock import Clock
from exporter.job.options import Job
from exporter.job.plan import Plan
from exporter.job.run import run_job
from exporter.loading.load import LanguageModel
from exporter.outputs.manifest import Manifest
from exporter.search import rounds
from exporter.search.rules import Budget
from exporter.studies import control_cuts, control_searches
from exporter.studies.control_cuts import Subject, take_complement, try_each_unit, try_random, try_without
from exporter.studies.control_searches import (
    find_constant,
    find_jaccard,
    list_neurons,
    resample,
    run_shuffled,
    search,
    shuffle_plan,
    try_resampled,
    try_shuffled,
)
from exporter.studies.controls import CONTROLS, run_controls
from exporter.tasks import TaskData
from exporter.tasks.dataset import Dataset

FIRST = 10  # the answer to token t is token FIRST + t


def plant_model() -> LanguageModel:
    """Token 0 or 1 lights hidden unit 0 or 1 of layer 1, which writes what the unembedding reads as 10 or 11."""
    model = make_model(n_layers=2, n_heads=2, d_head=4, d_mlp=6, activation="relu", tied=False)
    d = dict(model.hf.named_parameters())
    with torch.no_grad():
        for name, parameter in d.items():
            if not (name.endswith("weight") and ".ln_" in name):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
        for token in (0, 1):
            d["transformer.wte.weight"][token, token] = 1.0
            d["transformer.h.1.mlp.c_fc.weight"][token, token] = 1.0
            d["transformer.h.1.mlp.c_proj.weight"][token, 4 + token] = 50.0
            d["lm_head.weight"][FIRST + token, 4 + token] = 10.0
    return model


def make_set(n: int) -> Dataset:
    """Tokens 0 and 1 in turn."""
    tokens = torch.arange(n) % 2
    return Dataset(tokens[:, None], FIRST + tokens)


@pytest.fixture(scope="module")
def plan() -> Plan:
    data = TaskData("planted", {}, patching=make_set(60), selection=make_set(40), test=make_set(100), ood={})
    return Plan(Job("acronym", None, alpha=0.1), plant_model(), data, None, SearchRecord(), ())


PLANTED = Circuit(heads=[(0, 1)], mlps=(), neurons={1: (0, 1)})  # the head does nothing


def test_the_complement_by_hand(plan: Plan) -> None:
    dense = plan.model.dense
    rest = take_complement(dense, PLANTED)
    assert rest == Circuit(heads=[(0, 0), (1, 0), (1, 1)], mlps=(0,), neurons={1: (2, 3, 4, 5)})
    whole = Circuit(heads=[(0, 0)], mlps=(0, 1))
    assert take_complement(dense, whole) == Circuit(heads=[(0, 1), (1, 0), (1, 1)], mlps=())


@settings(max_examples=20)
@given(case=cases())
def test_circuit_and_complement_have_each_unit_once(case: Case) -> None:
    dense, circuit = case.model.dense, case.circuit
    rest = take_complement(dense, circuit)
    dense.check_circuit(rest)
    assert rest.ablation == circuit.ablation
    for sublayer in dense.sublayers():
        site = sublayer.sites[-1]
        if site.kind == "heads":
            kept = [*site.kept(circuit), *site.kept(rest)]
        else:
            kept = [unit for layer, unit in [*list_neurons(dense, circuit), *list_neurons(dense, rest)]  # type: ignore
                    if layer == site.layer]  # fmt: skip
        assert sorted(kept) == list(site.units)


def test_without_a_planted_circuit_the_model_guesses(plan: Plan) -> None:
    """Both answers have the same logit then, and the first one is taken: half are right, and KL is log 2."""
    found = try_without(Subject(plan, Found(PLANTED, SearchRecord())))
    assert found.dense.accuracy == 1.0
    assert found.without.accuracy.accuracy == 0.5
    assert found.without.kl == pytest.approx(math.log(2), rel=1e-3)


def test_units_in_the_order_of_their_worth(plan: Plan) -> None:
    found = try_each_unit(Subject(plan, Found(PLANTED, SearchRecord())))
    assert found.n == 100 and found.whole.accuracy.accuracy == 1.0
    assert [unit.unit for unit in found.units] == ["m1", "a0.h1"]
    assert found.units[0].kl == pytest.approx(math.log(2), rel=1e-3) and found.units[0].accuracy == 0.5
    assert found.units[1].kl == pytest.approx(found.whole.kl, abs=1e-6) and found.units[1].accuracy == 1.0


def test_random_circuits_miss_what_is_planted(plan: Plan) -> None:
    """Of six hidden units two are drawn, three times."""
    found = try_random(Subject(plan, Found(PLANTED, SearchRecord())))
    assert found.steps == 0 and len(found.draws) == 3
    assert {figures.accuracy.accuracy for figures in found.draws} <= {0.5, 1.0}
    assert min(figures.accuracy.accuracy for figures in found.draws) == 0.5


def with_budget(plan: Plan, budget: Budget, **changes: Any) -> Plan:
    return replace(plan, job=replace(plan.job, alpha=None, budget=budget, **changes))


def test_shuffled_answers_are_refused_or_end_at_chance(plan: Plan) -> None:
    """And true ones are not: the control can fail."""
    test = plan.data.test
    refused = run_shuffled(shuffle_plan(with_budget(plan, Budget(min_accuracy="-1pt"))), test)
    assert refused.finds_nothing and refused.accuracy is None and refused.chance == 0.5
    assert refused.refused is not None and refused.refused.startswith("no smaller circuit was found that keeps")
    small = with_budget(plan, Budget(max_params="60%"))
    found = run_shuffled(shuffle_plan(small), test)
    assert found.refused is None and found.accuracy is not None and found.finds_nothing
    assert found.parameters is not None and found.parameters <= 0.6 * plan.model.dense.count_parameters()
    true = run_shuffled(replace(small, job=replace(small.job, teacher="labels")), test)
    assert true.accuracy is not None and true.accuracy.accuracy == 1.0 and not true.finds_nothing


def test_what_reads_no_answers_is_not_tried_on_shuffled_ones(plan: Plan) -> None:
    subject = Subject(plan, Found(PLANTED, SearchRecord()))
    assert try_shuffled(subject) is None  # greedy by KL
    by_accuracy = replace(plan, job=replace(plan.job, metric="accuracy"))
    assert try_shuffled(Subject(by_accuracy, subject.found)) is not None
    unlabelled = Dataset(
        torch.zeros(8, 1, dtype=torch.int64), torch.full((8,), -1), labelled=torch.zeros(8, dtype=torch.bool)
    )
    nothing = replace(plan.data, patching=unlabelled)
    assert try_shuffled(Subject(replace(with_budget(plan, Budget("-1pt")), data=nothing), subject.found)) is None


def test_shuffling_leaves_the_test_set_alone(plan: Plan) -> None:
    shuffled = shuffle_plan(with_budget(plan, Budget("-1pt"), heal="none"))
    assert (shuffled.job.heal, shuffled.job.teacher) == ("distil", "labels")
    assert shuffled.data.test is plan.data.test
    for name in ("patching", "selection"):
        assert not torch.equal(getattr(shuffled.data, name).answer_ids, getattr(plan.data, name).answer_ids)


def test_the_best_constant_answer_by_hand() -> None:
    ids = torch.zeros(4, 1, dtype=torch.int64)
    assert find_constant(Dataset(ids, torch.tensor([3, 3, 5, 3]))) == 0.75
    assert find_constant(Dataset(ids, torch.tensor([[3, 4], [4, 5], [5, 4], [3, -1]]))) == 0.75
    choices = torch.tensor([[3, 5], [3, 5], [5, 6], [5, 6]])  # 3 where it can be, and else 5
    assert find_constant(Dataset(ids, torch.tensor([3, 3, 5, 6]), choice_ids=choices)) == 0.75


def test_jaccard_by_hand(plan: Plan) -> None:
    heads = [{Head(0, 0), Head(0, 1), Head(1, 0)}, {Head(0, 1), Head(1, 0), Head(1, 1)}]
    assert find_jaccard(set(heads[0]), set(heads[1])) == 0.5
    assert find_jaccard(set(), set()) == 1.0 and find_jaccard(set(), {1}) == 0.0
    some = Circuit(heads=[], mlps=(0,), neurons={1: (2, 5)})
    assert list_neurons(plan.model.dense, some) == {*((0, i) for i in range(6)), (1, 2), (1, 5)}


def test_resamples_draw_rows_with_their_answers() -> None:
    prompts = Dataset(torch.arange(50)[:, None], torch.arange(50))
    drawn = resample(prompts, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.input_ids, drawn.answer_ids) and len(drawn) == 50
    assert 25 < len(set(drawn.answer_ids[:, 0].tolist())) < 40


def test_a_search_on_resamples_finds_what_is_planted(plan: Plan) -> None:
    """The greedy search keeps the MLP that does the task each time."""
    found = search(plan)
    assert found.circuit == Circuit(heads=[], mlps=(1,))
    stable = try_resampled(Subject(plan, found))
    assert (stable.resamples, stable.refused, stable.survival) == (3, 0, {"m1": 3})
    assert stable.heads == stable.neurons == (1.0, 1.0, 1.0)


def test_resamples_that_come_to_nothing_are_counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: Plan) -> Found:
        raise InputError("no circuit")

    monkeypatch.setattr(control_searches, "search", refuse)
    none = try_resampled(Subject(plan, Found(Circuit(heads=[], mlps=(1,)), SearchRecord())))
    assert (none.refused, none.survival, none.heads) == (3, {"m1": 0}, ())


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Healing of a few steps."""
    for name in ("LEAST_ROUND", "MOST_ROUND", "MOST_STEPS"):
        monkeypatch.setattr(rounds, name, 2)
    monkeypatch.setattr(control_searches, "RESAMPLES", 1)
    monkeypatch.setattr(control_cuts, "DRAWS", 1)


SIZES = ("--patching-prompts", 24, "--selection-prompts", 8, "--test-prompts", 8)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("options", [("--max-params", "40%"), ("--preset", "paper", "--alpha", "0.003")])
def test_full_evidence_of_a_job(
    run: Run, make_checkpoint: Callable[..., Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Gradual with healing, and greedy without: in the manifest, on the screen, and again by inspect."""
    model, out = make_checkpoint(initializer_range=0.2), tmp_path / "m.onnx"
    task = ("--task", "acronym", "--model", model, "--out", out, *SIZES, *options)
    said = run.succeeds(*task, "--evidence", "full")
    text = out.with_suffix(".json").read_text()
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    controls, circuit = manifest.controls, manifest.get_circuit()
    assert isinstance(controls, Controls) and set(CONTROLS) <= set(manifest.seconds)
    assert (controls.shuffled is None) == ("paper" in options)
    learning = manifest.get_record().learning
    assert controls.random.steps == (0 if learning is None else learning.steps)
    names = {unit.unit for unit in controls.minimality.units}
    assert names == set(controls.stability.survival) == set(map(str, circuit.components))
    assert controls.completeness.dense == manifest.test.dense
    assert controls.minimality.whole.kl == pytest.approx(manifest.test.kl, rel=1e-4)
    again = run.succeeds("inspect", out)
    for words in ("controls, on held-out prompts", "all but the circuit", "random circuits of its size"):
        assert words in said and words in again
    assert json.loads(run.succeeds("inspect", out, "--json"))["controls"] == json.loads(text)["controls"]


def test_full_evidence_repeats_the_search_so_there_has_to_be_one(run: Run, tmp_path: Path) -> None:
    PLANTED.save(tmp_path / "c.json")
    task = ("--task", "acronym", "--model", "bundled", "--out", tmp_path / "m.onnx", "--circuit", tmp_path / "c.json")
    for more in ((), ("--dry-run",)):
        run.fails(2, "--evidence full repeats the search, and --circuit needs none", *task, "--evidence", "full", *more)
    with pytest.raises(UsageError, match="--evidence full repeats the search"):
        run_job(Job("acronym", tmp_path / "m.onnx", circuit=tmp_path / "c.json"), study=run_controls)


def test_each_control_is_a_stage(plan: Plan) -> None:
    stages: list[str] = []
    clock = Clock(stages.append)
    run_controls(plan, Found(Circuit(heads=[], mlps=(1,), ablation=Ablation()), SearchRecord()), clock)
    assert stages == list(CONTROLS) == list(clock.seconds)
