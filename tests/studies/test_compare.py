"""Comparisons: what the sentences say, what is kept of an earlier run, and what each contestant is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from tiny import make_model, make_prompts

from exporter.circuit import Ablation
from exporter.errors import InputError, UsageError
from exporter.evidence.latency import Effort
from exporter.graph.options import GraphOptions
from exporter.job.plan import prepare
from exporter.metrics.statistics import Accuracy
from exporter.rewrite.replacements import compute_replacements
from exporter.search.gates import finest_sites, run_gated
from exporter.search.healing import Healer, label_loss
from exporter.search.lessons import ask_dense
from exporter.search.state import pick_tables, start_state
from exporter.studies import compare
from exporter.studies.compare import CompareOptions, parse_sizes, run_comparison
from exporter.studies.compare_record import Comparison, Point, Result, judge
from exporter.studies.contestants import CONTESTANTS, Candidate, Contestant, Study, cuts, keep_all, searched, student
from exporter.studies.contestants.cuts import score_magnitude, score_randomly, score_taylor
from exporter.studies.contestants.embeddings import pool_embeddings
from exporter.studies.contestants.pooled import PooledSystem, pool_layers, read_means
from exporter.studies.contestants.probe import attach_probe, read_residuals
from exporter.studies.contestants.student import make_student
from exporter.studies.contestants.systems import NetworkSystem
from exporter.tasks import SplitSizes
from exporter.tasks.dataset import Dataset


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "EFFORT", Effort(rounds=2, block_seconds=0.0))


FEW = SplitSizes(patching=40, selection=12, test=15, ood=10)


def make_point(name: str, right: str, *, held: int = 100, speedup: float = 10.0) -> Point:
    unseen = {"words": Accuracy.of(3, 4)}
    return Point(name.split()[0], name, "none", held // 2, held, right, unseen, 1.5, 2.0, speedup, (9.0, 11.0))


def test_the_sentences_say_where_a_baseline_wins() -> None:
    ours = make_point("ours", "1" * 40)
    (won,) = judge([ours, make_point("probe", "1" * 38 + "00", held=50, speedup=20)])
    assert (
        won.startswith("probe wins and no less accurate") and "95.0% against 100.0%" in won and "50 against 100" in won
    )
    (slower,) = judge([ours, make_point("probe", "1" * 40, held=50, speedup=9)])
    assert slower.startswith("probe is smaller, but slower")
    (larger,) = judge([ours, make_point("probe", "1" * 40, held=500)])
    assert larger.startswith("probe is faster, but larger")
    both = [make_point("probe one", "1" * 40, held=500), make_point("probe two", "1" * 40)]
    assert [said.split(" wins")[0] for said in judge([ours, *both])] == ["probe two"]


def test_the_sentences_say_where_none_does() -> None:
    ours, worse = make_point("ours", "1" * 40), make_point("probe", "1" * 30 + "0" * 10, held=1)
    slow = make_point("student", "1" * 40, held=200, speedup=1)
    none = ["No baseline is as accurate as ours in as little time, or with as few parameters."]
    assert judge([ours, worse, slow]) == none
    assert (
        judge([ours]) == judge([ours, make_point("ours at 3%", "1" * 40, held=1), make_point("dense", "1" * 40)]) == []
    )
    assert "ours is not among" in judge([worse])[0]


def test_a_comparison_survives_its_file(tmp_path: Path) -> None:
    results = {"ours": Result((make_point("ours", "110"),)), "probe": Result((), "there is nothing to probe")}
    found = Comparison({"task": "t", "seed": 0}, {}, {}, "form", results)
    found.save(tmp_path / "c.json")
    assert found.read_results(tmp_path / "c.json") == results
    with pytest.raises(InputError, match="another seed; give another --out, or --force"):
        Comparison({"task": "t", "seed": 1}, {}, {}, "form").read_results(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(InputError, match="no comparison"):
        found.read_results(tmp_path / "c.json")
    header, line = found.to_csv().splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["accuracy"] == "0.6667"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_probes_file_gives_its_rows(family: str, n_classes: int, tmp_path: Path) -> None:
    """Logits are W x + b of the residual, but for a shift that all share; an RMSNorm's probe has no b."""
    dense, prompts = make_model(family, n_layers=3).dense, make_prompts(6, 5)
    generator = torch.Generator().manual_seed(0)
    W, b = (torch.randn(n_classes, n, generator=generator).double() for n in (8, 1))
    given = None if dense.final_norm.rms else b[:, 0]
    tokens = [5, 2, 9, 30][:n_classes]
    model = attach_probe(dense, 2, tokens, W, given)
    wanted = read_residuals(dense, prompts)[1].double() @ W.T + (0 if given is None else given)
    found = model.answer_logits(prompts.input_ids)[:, 0, tokens].double()
    found, wanted = (logits - logits.mean(1, keepdim=True) for logits in (found, wanted))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    system = NetworkSystem(model, GraphOptions(logits="answers", answer_ids=tuple(tokens)), tokens)
    built = system.build(tmp_path, prompts, threads=1)  # raises where the file gives other logits
    assert built.call() is not None and built.parameters > 0
    assert system.parameters < dense.count_parameters()
    assert set(system._answer(prompts).argmax(-1)[:, 0].tolist()) <= set(tokens)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("family", "depth"), [("gpt2", 2), ("gpt2", 0), ("llama", 1)])
def test_a_classifier_of_means_is_a_network_whose_logits_are_averaged(
    family: str, depth: int, padded: bool, tmp_path: Path
) -> None:
    """Logits are W x + b of the mean residual x over the prompt's own tokens, but for a shift that all share."""
    dense, prompts = make_model(family, n_layers=3).dense, make_prompts(6, 5, padded=padded)
    generator, tokens = torch.Generator().manual_seed(0), [5, 2, 9]
    W, b = (torch.randn(3, n, generator=generator).double() for n in (8, 1))
    given = None if dense.final_norm.rms else b[:, 0]
    whole = attach_probe(dense, depth, tokens, W, given)
    means = read_means(dense, prompts)
    assert means.shape == (4, 6, 8)
    wanted = means[depth].double() @ W.T + (0 if given is None else given)  # (prompt, class)
    options = GraphOptions(form="masked" if padded else "plain", logits="all")
    system = PooledSystem(whole.replace(W_U=whole.W_U[tokens]), options, tokens, len(dense.W_E))
    right = torch.tensor(tokens)[wanted.argmax(-1)]
    assert system.mark(Dataset(prompts.input_ids, right, prompts.mask)).all()
    other = torch.tensor(tokens)[wanted.argmin(-1)]
    assert not system.mark(Dataset(prompts.input_ids, other, prompts.mask)).any()
    built = system.build(tmp_path, prompts, threads=1)
    found = torch.from_numpy(np.asarray(built.call())).reshape(-1).double()
    torch.testing.assert_close(found - found.mean(), wanted[0] - wanted[0].mean(), atol=1e-4, rtol=1e-4)
    assert built.parameters > 0 and (system.parameters < dense.count_parameters())


def test_means_that_say_the_answer_are_learnt_and_deeper_ones_only_where_they_are_better(
    make_checkpoint: Callable[..., Path],
) -> None:
    """The answer is the prompt's second token: the embeddings' mean tells, whatever comes after."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, 90, (60, 4), generator=generator)
    ids[:, 1] = torch.randint(20, 22, (60,), generator=generator)
    plan = prepare(make_options(make_checkpoint()).job)
    parts = [Dataset(ids[rows], ids[rows, 1]) for rows in (slice(0, 40), slice(40, 50), slice(50, 60))]
    data = replace(plan.data, patching=parts[0], selection=parts[1], test=parts[2], ood={})
    study = Study(replace(plan, data=data), (0.5,))
    (candidate,) = pool_embeddings(study)
    assert candidate.name == "mean of the embeddings" and candidate.system.mark(parts[2]).all()
    shares = [float(re.search(r"([\d.]+)%", c.budget)[1]) for c in pool_layers(study)]  # type: ignore[index]
    assert shares == sorted(set(shares))


def test_magnitude_is_the_norm_of_what_a_unit_writes_with() -> None:
    dense = make_model().dense
    worth, (attention, mlp, *_) = score_magnitude(dense), list(dense.sublayers())
    torch.testing.assert_close(worth["heads.0"][1], attention.tensors["W_O"][4:8].double().square().sum())
    torch.testing.assert_close(worth["neurons.0"][3], mlp.tensors["W_out"][3].double().square().sum())


def test_random_scores_are_seeded_and_in_parameters() -> None:
    dense = make_model().dense
    draws = [score_randomly(dense, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0]["neurons.1"].equal(draws[1]["neurons.1"]) and not draws[0]["neurons.1"].equal(draws[2]["neurons.1"])
    assert draws[0]["neurons.1"].max() <= 2 * 8 + 1 < draws[0]["heads.0"].sum()


def test_taylor_is_the_slope_of_the_loss() -> None:
    """The sum over prompts of |d loss / d gate|, by finite differences at one head."""
    dense, prompts = make_model(seed=3).dense, make_prompts(3, 4)
    tables = compute_replacements(dense, prompts, ablation=Ablation(), neurons=(0, 1))
    model = start_state(dense, Ablation(), prompts.length).model
    means, lessons, step = pick_tables(tables, model), ask_dense(dense, prompts), 1e-2
    slopes = []
    for row in range(3):
        one = lessons.take(torch.tensor([row]))
        losses = []
        for gate in (1 - step, 1 + step):
            gates = {name: torch.ones(1, n) for name, n in finest_sites(model)}
            gates["heads.1"][0, 0] = gate
            losses.append(float(label_loss(one, run_gated(model, one.prompts, means, gates))))
        slopes.append(abs(losses[1] - losses[0]) / (2 * step))
    found = score_taylor(model, lessons, means)["heads.1"][0]
    assert float(found) == pytest.approx(sum(slopes), rel=0.02)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_student_is_random_small_and_learns(family: str) -> None:
    dense, prompts = make_model(family, n_layers=3, n_heads=4, d_mlp=16).dense, make_prompts(40, 5)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    model = make_student(start_state(dense, Ablation(), 5).model, 2, 0.5, torch.Generator().manual_seed(0))
    assert [len(sublayer.sites[-1].units) for sublayer in model.sublayers()] == [2, 8, 2, 8]
    healer = Healer(ask_dense(dense, prompts), ask_dense(dense, prompts))
    loss = healer.look(model)
    assert healer.heal(model, steps=40, seed=0) > 1
    assert healer.look(model) < 0.9 * loss
    assert all(tensor.equal(before[name]) for name, tensor in dense.state_dict().items())


def make_options(model: Path, out: Path | None = None, **changes: Any) -> CompareOptions:
    return CompareOptions(
        **{"task": "acronym", "model": str(model), "prompts": FEW, "sizes": (0.5,), "threads": 1, "out": out} | changes
    )


def call_it_ours(study: Study) -> Iterator[Candidate]:
    """The random model itself. A year that is always late enough, 99, is better, and a single number."""
    yield Candidate("ours", study.wrap(study.dense), "none")


def test_where_a_bag_of_words_wins_the_sentence_says_so_and_what_is_done_is_kept(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fails(study: Study) -> Iterator[Candidate]:
        yield from keep_all(study)
        calls.append("fails")
        raise InputError("no more")

    model, out = make_checkpoint(), tmp_path / "c.json"
    contestants: dict[str, Contestant] = {
        "dense": keep_all, "ours": call_it_ours, "tfidf-logistic": CONTESTANTS["tfidf-logistic"], "other": fails,
    }  # fmt: skip
    first = run_comparison(make_options(model, out, task="greater-than"), contestants=contestants)
    data = json.loads(out.read_text())
    (said,) = [said for said in data["sentences"] if said.startswith("tfidf-logistic ")]
    assert "no less accurate than ours: 100.0% against" in said
    assert data["contestants"]["other"]["note"] == "no more" and len(data["contestants"]["other"]["points"]) == 1
    assert out.with_suffix(".csv").read_text() == first.to_csv()
    assert b"<svg" in out.with_suffix(".svg").read_bytes() and out.with_suffix(".png").stat().st_size > 1000

    monkeypatch.setattr(compare, "draw", lambda *_: None)  # which takes seconds
    again = run_comparison(make_options(model, out, task="greater-than"), contestants=contestants)
    assert again.results == first.results and calls == ["fails"]
    with pytest.raises(InputError, match="another sizes"):
        run_comparison(make_options(model, out, task="greater-than", sizes=(0.4,)), contestants=contestants)
    run_comparison(make_options(model, out, task="greater-than", force=True, only=("ours",)), contestants=contestants)
    assert list(json.loads(out.read_text())["contestants"]) == ["dense", "ours"]


@pytest.mark.slow
def test_every_contestant_runs(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuts, "MOST_STEPS", 3)
    monkeypatch.setattr(student, "STEPS", 3)
    monkeypatch.setattr(searched, "ALPHAS", (0.02,))
    found = run_comparison(make_options(make_checkpoint(), tmp_path / "c.json"))
    assert list(found.results) == list(CONTESTANTS)
    names = {point.name for point in found.points}
    assert {"dense", "tfidf-svm", "magnitude at 50%", "random at 50%, healed", "paper, alpha 0.02"} <= names
    assert {"ours at 50%", "ours-unhealed at 50%", "student, 1 layers, 0.5 of the units"} & names
    assert all(point.held > 0 and len(point.right) == FEW.test for point in found.points)


def test_the_command_line(run: Run, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    few = ("--patching-prompts", 20, "--selection-prompts", 5, "--test-prompts", 5, "--threads", 1)
    arguments = ("compare", "--task", "acronym", "--model", make_checkpoint(), "--only", "dense", *few)
    assert "dense" in run.succeeds(*arguments)
    found = json.loads(run.succeeds(*arguments, "--json"))
    assert found["prompts"]["test"] == 5 and found["contestants"]["dense"]["points"][0]["speedup"] > 0
    run.fails(2, "--task is missing", "compare")
    run.fails(2, "choose from dense, ours", "compare", "--task", "acronym", "--only", "svm")
    run.fails(2, "--sizes", "compare", "--task", "acronym", "--sizes", "2")
    run.fails(2, "ends in .json", "compare", "--task", "acronym", "--out", tmp_path / "c.csv")


def test_sizes_are_shares() -> None:
    assert parse_sizes("20%, 3%") == (0.2, 0.03) and parse_sizes("0.5") == (0.5,)
    for text in ("x", "", "3%%"):
        with pytest.raises(UsageError, match="--sizes"):
            parse_sizes(text)
