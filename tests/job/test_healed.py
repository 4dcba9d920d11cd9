"""The job under a budget: healed weights through gate, bundle, verify and another export, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from exporter.errors import UsageError
from exporter.graph.metadata import SURGERY_KEY
from exporter.job import plan
from exporter.job.options import Job
from exporter.outputs.manifest import Manifest
from exporter.rewrite.replacements import Replacements
from exporter.rewrite.surgery import Surgery
from exporter.search import gradual, rounds
from exporter.search.rules import Budget
from exporter.tasks import SplitSizes
from exporter.tasks.task import PATCHING

FEW = ("--patching-prompts", "60", "--selection-prompts", "30", "--test-prompts", "20")


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> Path:
    """A small model with the real tokenizer."""
    return make_checkpoint(n_layer=3, n_head=4, n_embd=32)


@pytest.fixture(scope="module")
def healed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healed circuit as file and bundle."""
    from exporter.job.run import run_job

    folder = tmp_path_factory.mktemp("healed")
    sizes = SplitSizes(patching=60, selection=30, test=20, ood=10)
    budget, out = Budget(max_params="10%"), folder / "m.onnx"
    job = Job("acronym", out, model=str(model), budget=budget, sizes=sizes, bundle=folder / "b")
    with pytest.MonkeyPatch.context() as patch:  # how well it is healed is not asked here
        patch.setattr(rounds, "LEAST_ROUND", 4)
        patch.setattr(rounds, "MOST_STEPS", 8)
        run_job(job)
    return folder


@pytest.fixture
def in_great_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sizes of a search that does not heal."""
    monkeypatch.setattr(gradual, "RATIO_UNHEALED", 0.4)


def test_it_is_small_and_says_that_it_was_healed(healed: Path, run: Any) -> None:
    manifest = Manifest.load(healed / "m.json")
    assert manifest.size.circuit <= 0.1 * manifest.size.dense
    assert manifest.exactness.hooked_vs_rewritten <= manifest.exactness.limit
    record = manifest.get_record()
    assert record.learning is not None
    assert record.learning.prompts == 60  # too few to keep some aside
    assert record.path[-1].parameters == manifest.size.circuit
    weights = [name for name in manifest.files if name.endswith(".surgery.safetensors")]
    assert len(weights) == 1
    assert {path.name for path in healed.iterdir()} == {"m.onnx", "m.json", "b", *weights}
    said = run.succeeds("inspect", healed / "m.onnx")
    assert "healed, not the original's" in said
    assert "max_params 10%" in said
    assert "healed, not the original's" in (healed / "b" / "README.md").read_text()


def test_it_is_verified_with_its_weights_and_not_without(healed: Path, run: Any, tmp_path: Path) -> None:
    assert "is exact" in run.succeeds("verify", healed / "m.onnx")
    assert "is exact" in run.succeeds("verify", healed / "b" / "model.onnx")
    shutil.copy(healed / "m.onnx", tmp_path)
    run.fails(3, "was healed, and its weights are in m-", "verify", tmp_path / "m.onnx")


@pytest.mark.parametrize("damage", ["other", "truncated", "missing table", "shape", "not finite"])
def test_weights_that_are_not_its_own_are_refused(
    model: Path, damage: str, healed: Path, run: Any, tmp_path: Path
) -> None:
    for path in healed.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    beside = next(tmp_path.glob("*.surgery.safetensors"))
    surgery = Surgery.load(beside)
    edits, tables = dict(surgery.edits), dict(surgery.replacements.tables)
    name = next(name for name in edits if name.endswith(".shift"))
    if damage == "truncated":
        beside.write_bytes(beside.read_bytes()[:-100])
    elif damage == "other":
        edits[name] = edits[name] + 1
    elif damage == "shape":
        edits[name] = edits[name][:, :3]
    elif damage == "not finite":
        edits[name] = edits[name] * float("nan")
    else:
        del tables["heads.2"]
    if damage != "truncated":
        Surgery(surgery.circuit, Replacements(tables, surgery.circuit.ablation), edits).save(beside)
    # another export refuses what does not fit, and verify whatever is not what the file was made from
    again = ("--task", "acronym", "--model", model, "--circuit", tmp_path / "m.json", "--out", tmp_path / "n.onnx")
    message = {"truncated": "cannot load a surgery", "other": "not those it was made from"}.get(
        damage, "not|no repl|than"
    )
    run.fails(3, message, "verify", tmp_path / "m.onnx")
    if damage != "other":
        run.fails(3, "surgery|shape|finite", *again, *FEW)
        assert not (tmp_path / "n.onnx").exists()


def test_a_hash_that_is_a_path_is_refused(healed: Path, run: Any, tmp_path: Path) -> None:
    model = onnx.load(healed / "m.onnx")
    entry = next(prop for prop in model.metadata_props if prop.key == SURGERY_KEY)
    entry.value = "../../../../etc/x"
    onnx.save(model, tmp_path / "m.onnx")
    run.fails(3, "is damaged", "verify", tmp_path / "m.onnx")


def test_it_is_exported_again_in_another_form(model: Path, healed: Path, run: Any, tmp_path: Path) -> None:
    job = ("--task", "acronym", "--model", model, "--circuit", healed / "m.json", "--out", tmp_path / "n.onnx")
    run.succeeds(*job, "--logits", "answers", "--vocab", "task", *FEW)
    ours, theirs = Manifest.load(tmp_path / "n.json"), Manifest.load(healed / "m.json")
    assert ours.test.circuit == theirs.test.circuit
    assert ours.get_record() == theirs.get_record()
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(json.loads((healed / "m.json").read_text())["circuit"]))
    again = ("--task", "acronym", "--model", model, "--circuit", alone, "--out", tmp_path / "o.onnx")
    run.fails(3, "only its manifest says in which file its weights are", *again, *FEW)


def test_its_means_are_of_as_many_prompts_as_its_search_had(
    model: Path, healed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradual search of a built-in task draws more patching prompts than other jobs; so must the next export."""
    monkeypatch.setattr(rounds, "MOST_LESSONS", 300)
    circuit = tmp_path / "c.json"
    circuit.write_text(json.dumps({"heads": [[0, 1]], "mlps": [0]}))
    shared: dict[str, Any] = {"model": str(model), "sizes": SplitSizes(selection=30, test=20, ood=10)}
    searched = plan.prepare(Job("acronym", None, budget=Budget(max_params="10%"), **shared))
    again = plan.prepare(Job("acronym", None, circuit=healed / "m.json", **shared))
    assert again.data.parameters == searched.data.parameters and len(again.data.patching) == 300
    assert plan.hash_sets(again.data) == plan.hash_sets(searched.data)
    assert len(plan.prepare(Job("acronym", None, circuit=circuit, **shared)).data.patching) == PATCHING


def test_another_export_in_its_place_takes_the_weights_along(
    model: Path, healed: Path, run: Any, tmp_path: Path
) -> None:
    for path in healed.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    circuit = tmp_path / "c.json"
    circuit.write_text(json.dumps({"heads": [[0, 1]], "mlps": [0]}))
    job = ("--task", "acronym", "--model", model, "--circuit", circuit, "--out", tmp_path / "m.onnx")
    run.succeeds(*job, *FEW, "--force")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.json", "c.json"}


@pytest.mark.usefixtures("in_great_strides")
def test_without_healing_weights_are_the_originals(model: Path, run: Any, tmp_path: Path) -> None:
    job = ("--task", "acronym", "--model", model, "--out", tmp_path / "m.onnx", "--heal", "none", *FEW)
    run.succeeds(*job, "--max-params", "20%")
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest.get_record().weights == "the original's"
    assert manifest.size.circuit < 0.2 * manifest.size.dense
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.onnx"]
    assert "is exact" in run.succeeds("verify", tmp_path / "m.onnx")


@pytest.mark.usefixtures("in_great_strides")
def test_a_latency_that_nothing_keeps_is_refused(model: Path, run: Any, tmp_path: Path) -> None:
    job = ("--task", "acronym", "--model", model, "--out", tmp_path / "m.onnx", "--heal", "none", *FEW)
    run.fails(3, "no circuit keeps max_latency_ms 0.0001", *job, "--max-kl", "100", "--max-latency-ms", "1e-4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.1, "preset": "deploy"}, "--alpha is not for the gradual search"),
        ({"preset": "deploy", "dtype": "bfloat16"}, "--dtype is not for the gradual search"),
        ({"metric": "js"}, "--metric is not for the gradual search"),
        ({"preset": "deploy", "metric": "js"}, "--metric is not for the gradual search"),
        (
            {"preset": "paper", "metric": "js"},
            r"--metric js has no threshold of its own; give --alpha, in its unit \(nats",
        ),
        ({"circuit": Path("c.json"), "metric": "js"}, "--metric is for the search"),
        ({"preset": "paper", "budget": Budget(max_kl=1.0)}, "a budget is not for the greedy search"),
        ({"preset": "paper", "heal": "none"}, "--heal is not for the greedy search"),
        ({"preset": "paper", "teacher": "labels"}, "--teacher is not for the greedy search"),
        (
            {"preset": "deploy", "heal": "none", "teacher": "labels"},
            "--teacher is for healing, and --heal none has none",
        ),
        (
            {"preset": "deploy", "heal": "refit", "teacher": "both"},
            "--heal refit is after the dense model; leave --teacher out",
        ),
        ({"circuit": Path("c.json"), "preset": "paper"}, "--preset is for the search"),
        ({"circuit": Path("c.json"), "budget": Budget(max_kl=1.0)}, "a budget is for the search"),
    ],
)
def test_options_of_the_other_preset_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Job("acronym", Path("m.onnx"), **options)


def test_a_dry_run_says_the_budget(model: Path, run: Any) -> None:
    plan = json.loads(
        run.succeeds("--task", "acronym", "--model", model, "--max-kl", "0.5", "--dry-run", "--json", *FEW)
    )
    assert (plan["alpha"], plan["budget"]) == (None, {"max_kl": 0.5})
    run.fails(3, "min_accuracy is 'x'", "--task", "acronym", "--min-accuracy", "x", "--out", "m.onnx")
    run.fails(2, "--batch is for --max-latency-ms", "--task", "acronym", "--batch", "8", "--out", "m.onnx")
    run.fails(2, "--threads is for --max-latency-ms", "--task", "acronym", "--threads", "1", "--out", "m.onnx")
