"""Default thresholds: a sweep is claimed for just what it was made for, and the script that sweeps keeps its rule."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from exporter.circuit import Ablation, Circuit
from exporter.job.options import Job
from exporter.job.plan import Plan, prepare
from exporter.loading.load import LanguageModel, load_model
from exporter.search import thresholds
from exporter.search.thresholds import FILE_ALPHA, find_threshold
from exporter.tasks import EXAMPLES, TASKS, SplitSizes, load_task, name_variant
from exporter.tasks.lines import hash_data_file

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "exporter" / "search"
EXAMPLES_FOLDER = ROOT / "exporter" / "tasks" / "examples"
SWEEPS: dict[str, dict[str, Any]] = json.loads((FOLDER / "alphas.json").read_text())
RECORDS = [(model, variant) for model, records in SWEEPS.items() for variant in records]
SMALL = SplitSizes(patching=8, selection=8, test=8, ood=8)


@pytest.fixture(scope="module")
def script() -> Any:
    """benchmarks/sweep_alpha.py as a module."""
    spec = importlib.util.spec_from_file_location("sweep_alpha", ROOT / "benchmarks" / "sweep_alpha.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its data classes look themselves up
    spec.loader.exec_module(module)
    return module


def test_a_variant_is_named_by_what_is_not_the_default(bundled: LanguageModel) -> None:
    def name(task: str, **parameters: Any) -> str:
        return name_variant(load_task(task, bundled.tokenizer, sizes=SMALL, **parameters))

    assert [name("acronym"), name("acronym", letters=1), name("acronym", letters=3)] == [
        "acronym",
        "acronym",
        "acronym letters=3",
    ]
    assert name("ioi", template="paper") == "ioi template=paper"
    assert name(str(EXAMPLES_FOLDER / "agreement.jsonl")) == "agreement.jsonl"


@pytest.mark.parametrize(
    ("asked", "alpha", "swept"),
    [
        (("ioi", None, "big", "b1"), 0.3, True),
        (("ioi", None, "big", "other weights"), 0.3, False),
        (("ioi template=paper", None, "big", "b1"), 0.3, False),  # the same task on the same model comes first
        (("ioi template=paper", None, "bundled", "b0"), 0.2, True),
        (("ioi template=paper", None, "unknown", "b2"), 0.2, False),
        (("ioi template=mine", None, "unknown", "b2"), 0.1, False),
        (("ioi", None, "one", "b3"), 0.5, False),
        (("my.jsonl", "f1", "big", "b1"), 0.4, True),
        (("my.jsonl", "changed", "big", "b1"), FILE_ALPHA, False),
        (("my.jsonl", "f1", "bundled", "b0"), FILE_ALPHA, False),
        (("ioi", "f1", "big", "b1"), FILE_ALPHA, False),  # a file of that name
    ],
)
def test_a_sweep_counts_for_what_it_was_made_for(
    asked: tuple[str, str | None, str, str], alpha: float, swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "bundled": {
            "ioi": {"alpha": 0.1, "model_sha256": "b0"},
            "ioi template=paper": {"alpha": 0.2, "model_sha256": "b0", "file_sha256": None},
        },
        "big": {
            "ioi": {"alpha": 0.3, "model_sha256": "b1"},
            "my.jsonl": {"alpha": 0.4, "model_sha256": "b1", "file_sha256": "f1"},
        },
        "one": {"ioi template=paper": {"alpha": 0.5, "model_sha256": "b3"}},
    }
    monkeypatch.setattr(thresholds, "_SWEEPS", table)
    variant, file_sha256, model, model_sha256 = asked
    found = find_threshold(variant, file_sha256=file_sha256, model=model, model_sha256=model_sha256)
    assert found.alpha == alpha
    assert found.sweep == (table[model][variant] if swept else None)


@pytest.mark.parametrize(("model", "variant"), RECORDS)
def test_records_are_of_what_ships(model: str, variant: str, bundled: LanguageModel) -> None:
    """A file or checkpoint that is changed has to be swept again, or its record is never found."""
    record = SWEEPS[model][variant]
    assert record["alpha"] in [row["alpha"] for row in record["sweep"]]
    assert record["model"] == model and (model != "bundled" or record["model_sha256"] == bundled.sha256)
    assert record.get("task", variant) == variant
    if (name := variant.split(" ")[0]) in EXAMPLES:
        assert record["file_sha256"] == hash_data_file(EXAMPLES_FOLDER / name)
    else:
        assert name in TASKS and record.get("file_sha256") is None


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A search of the bundled model with all defaults."""
    return prepare(Job(task="acronym", out=None, model="bundled", sizes=SMALL, preset="paper"))


def test_the_default_search_claims_its_sweep(plan: Plan) -> None:
    assert (plan.alpha, plan.alpha_sweep, plan.notes) == (0.04, SWEEPS["bundled"]["acronym"], ())
    given = replace(plan, job=replace(plan.job, alpha=0.04))
    assert (given.alpha, given.alpha_sweep, given.alpha_notes) == (0.04, None, ())
    by_hand = replace(plan, circuit=Circuit(heads=(), mlps=()))
    assert (by_hand.alpha_sweep, by_hand.alpha_notes) == (None, ())


@pytest.mark.parametrize(
    "options",
    [
        {"ablation": Ablation("zero")},
        {"ablation": Ablation(by="global")},
        {"ablation": Ablation(align="right")},
        {"mlps": False},
    ],
)
def test_another_search_claims_no_sweep_and_says_so(plan: Plan, options: dict[str, Any]) -> None:
    other = replace(plan, job=replace(plan.job, **options))
    assert (other.alpha, other.alpha_sweep) == (0.04, None)
    (note,) = other.alpha_notes
    assert note.startswith("alpha is 0.04, chosen for acronym on bundled with means by position from the first token, ")
    assert note.endswith("MLPs searched; not swept for this search: compare a few (--alpha)")


def test_another_task_claims_no_sweep_and_says_so(run: Run, tmp_path: Path) -> None:
    """On the command line: three letters, where one was swept."""
    arguments = ("--task", "acronym", "--letters", "3", "--model", "bundled", "--out", tmp_path / "m.onnx", "--dry-run")
    code, _, err = run.all(*arguments, "--preset", "paper")
    told = "warning: alpha is 0.04, chosen for acronym on bundled; not swept for this search"
    assert code == 0 and err.count("\n") == 1 and told in err


ROWS = [
    {"alpha": 0.01, "accuracy": 0.98, "kl": 0.1, "reduction": 0.2},
    {"alpha": 0.02, "accuracy": 0.97, "kl": 0.3, "reduction": 0.5},
    {"alpha": 0.04, "accuracy": 0.97, "kl": 0.3, "reduction": 0.5},
    {"alpha": 0.09, "accuracy": 0.90, "kl": 0.9, "reduction": 0.9},
]


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [
        ({"most_kl": 0.5}, 0.02),  # of two equal ones the smaller threshold
        ({"most_kl": 0.2}, 0.01),
        ({"most_kl": 1.0}, 0.02),
        ({"most_kl": 1.0, "most_loss": 0.08}, 0.09),
        ({"most_kl": 0.05}, None),
    ],
)
def test_the_rule_takes_the_smallest_faithful_circuit(script: Any, rule: dict[str, Any], alpha: float | None) -> None:
    assert script.Faithfulness(**rule).choose(ROWS, 0.98) == alpha


def test_a_sweep_goes_on_where_an_earlier_one_ended(
    script: Any, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the same prompts stay; those of other prompts, or of another judge, are searched anew."""
    model, searched = load_model(make_checkpoint(n_layer=1, n_head=1)), []

    def search_circuit(*arguments: Any, alpha: float, **options: Any) -> Any:
        searched.append(alpha)
        return search(*arguments, alpha=alpha, **options)

    def sweep(alphas: tuple[float, ...], known: Any, *, selection: int = 8, judge: str = "selection") -> Any:
        searched.clear()
        sizes = SplitSizes(patching=8, selection=selection, test=8, ood=8)
        data = script.read_task(model, "acronym letters=3", sizes)
        rule = script.Faithfulness(most_kl=9.0, judge=judge)
        return list(script.sweep_task(model, data, alphas=alphas, rule=rule, known=known))[-1]

    search = script.search_circuit
    monkeypatch.setattr(script, "search_circuit", search_circuit)
    first = sweep((0.001,), None)
    assert first["task"] == "acronym letters=3" and first["prompts"] == {"patching": 8, "selection": 8}
    both = sweep((0.002, 0.001), first)
    assert searched == [0.002] and [row["alpha"] for row in both["sweep"]] == [0.001, 0.002]
    assert both["sweep"][0] == first["sweep"][0]
    for other in ({"selection": 9}, {"judge": "both"}):
        assert len(sweep((0.002,), first, **other)["sweep"]) == 1 and searched == [0.002]


def test_a_sweep_of_a_data_file_is_found_for_that_file(
    script: Any, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    choices = [" yes", " no"]
    lines = [{"prompt": f"Is {i} even? Say", "answer": choices[i % 2], "choices": choices} for i in range(10, 50)]
    path, records = tmp_path / "my.jsonl", tmp_path / "alphas.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records.write_text("{}")
    model = load_model(make_checkpoint(n_layer=1, n_head=1))
    data = script.read_task(model, str(path), SMALL)
    for record in script.sweep_task(model, data, alphas=[0.003], rule=script.Faithfulness(most_kl=9.0, most_loss=1.0)):
        script.write_record(records, record)
    monkeypatch.setattr(thresholds, "_SWEEPS", json.loads(records.read_text()))

    def plan() -> Any:
        model = str(make_checkpoint(n_layer=1, n_head=1))
        return prepare(Job(task=str(path), out=None, model=model, preset="paper", force=True))

    found = plan()
    assert found.alpha == 0.003 and found.alpha_sweep["sweep"][0]["alpha"] == 0.003
    path.write_text(path.read_text() + json.dumps(lines[0] | {"prompt": "Is 51 even? Say"}) + "\n")
    changed = plan()
    assert (changed.alpha, changed.alpha_sweep) == (FILE_ALPHA, None)
    assert changed.notes[-1].startswith("alpha is 0.02, the default for data files; not swept for")


def test_a_sweep_without_a_faithful_circuit_says_so(script: Any, make_checkpoint: Callable[..., Path]) -> None:
    model = load_model(make_checkpoint(n_layer=1, n_head=1))
    data, rule = script.read_task(model, "acronym", SMALL), script.Faithfulness(most_kl=1e-9)
    with pytest.raises(SystemExit, match=r"no threshold gives the smallest circuit .* try smaller ones with --alphas"):
        list(script.sweep_task(model, data, alphas=[0.5], rule=rule))
