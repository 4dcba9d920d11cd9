"""ROC against a known circuit, held against a case worked by hand."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from exporter.circuit import Circuit, CircuitFile, Decision, GraphShape, SearchRecord, graph_to_json, parse_component
from exporter.errors import InputError, MissingRuntimeError
from exporter.evidence.roc import Reference, compare_roc, plot_roc, rank_components, read_reference

# Scores of four heads; the reference has the first and the third. Of the four pairs of one that belongs and one that
# does not, three are in order, so the area is 3/4.
SCORES = {"a0.h0": 0.9, "a0.h1": 0.5, "a1.h0": 0.4, "a1.h1": -0.1}


def make_file(kept: tuple[tuple[int, int], ...] = ((0, 0), (0, 1))) -> CircuitFile:
    scores = {parse_component(name): score for name, score in SCORES.items()}
    return CircuitFile(Circuit(heads=kept, mlps=()), SearchRecord(), scores)


def make_reference(*heads: tuple[int, int], mlps: tuple[int, ...] = ()) -> Reference:
    return Reference("known", "by hand", Circuit(heads=heads, mlps=mlps), list)


def save_trace(path: Path, *, shape: GraphShape | None = None, heads_only: bool = False) -> Path:
    """A greedy search of GPT-2 Small's shape that ranks what is in the published acronym circuit first."""
    known = read_reference("acronym").circuit
    names = [name for name in (shape or GraphShape(12, 12, 8)).nodes()[1:] if not heads_only or name[0] == "a"]
    components = [parse_component(name) for name in names]
    trace = [Decision(c, 0.0, 0.5 if known.keeps(c) else 0.001, not known.keeps(c)) for c in components]
    known.save(path, SearchRecord(alpha=0.02, order="paper", kl=0.1, trace=tuple(trace)))
    return path


def test_the_curve_by_hand() -> None:
    found = rank_components("c", make_file(), make_reference((0, 0), (1, 0)))
    assert found.auc == pytest.approx(0.75)
    assert [(p.fpr, p.tpr) for p in found.points] == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert [p.threshold for p in found.points] == [None, 0.9, 0.5, 0.4, -0.1]
    assert (found.tpr, found.fpr, found.precision) == (0.5, 0.5, 0.5)
    assert (found.n, found.positives, found.unscored) == (4, 2, ())


def test_what_has_no_score_is_left_out_and_named() -> None:
    found = rank_components("c", make_file(()), make_reference((0, 0), (3, 1), mlps=(2,)))
    assert found.unscored == ("a3.h1", "m2")
    assert (found.positives, found.precision) == (1, None)


def test_an_mlp_that_is_kept_in_part_belongs() -> None:
    file = CircuitFile(
        Circuit(heads=(), mlps=(), neurons={0: (1,)}),
        SearchRecord(),
        {parse_component("m0"): 1.0, parse_component("m1"): 0.0},
    )
    known = Reference("known", "by hand", Circuit(heads=(), mlps=(), neurons={0: (2,)}), list)
    assert rank_components("c", file, known).tpr == 1.0


@pytest.mark.parametrize(("heads", "word"), [((), "none"), (((0, 0), (0, 1), (1, 0), (1, 1)), "all")])
def test_components_of_one_kind_have_no_curve(heads: tuple[tuple[int, int], ...], word: str) -> None:
    with pytest.raises(InputError, match=f"{word} of the 4 components"):
        rank_components("c", make_file(), make_reference(*heads))


def test_a_perfect_order_against_a_published_circuit(tmp_path: Path, run: Run) -> None:
    """MLPs are left out, as its authors did not ask about them; the plot and the JSON are written."""
    path = save_trace(tmp_path / "c.json")
    found = json.loads(run.succeeds("roc", path, "--against", "acronym", "--json", "--plot", tmp_path / "roc.svg"))
    assert (found["auc"], found["tpr"], found["fpr"], found["precision"]) == (1.0, 1.0, 0.0, 1.0)
    assert (found["n"], found["positives"]) == (144, 8)
    assert "<svg" in (tmp_path / "roc.svg").read_text()
    run.fails(3, "--force", "roc", path, "--against", "acronym", "--plot", tmp_path / "roc.svg")
    shown = run.succeeds("roc", path, "--against", "greater-than")
    assert "156, of which 18 are in greater-than" in shown and "Hanna" in shown


def test_a_graph_file_is_ranked_by_its_nodes(tmp_path: Path) -> None:
    trace = save_trace(tmp_path / "c.json")
    graph = graph_to_json(
        Circuit.load(trace), GraphShape(12, 12, 8), SearchRecord.from_json(json.loads(trace.read_text()))
    )
    (tmp_path / "g.json").write_text(json.dumps(graph))
    assert compare_roc(tmp_path / "g.json", "acronym").auc == 1.0
    assert compare_roc(trace, str(tmp_path / "g.json")).auc == 1.0


def test_without_scores_it_says_so(tmp_path: Path, run: Run) -> None:
    (tmp_path / "c.json").write_text('{"heads": [[0, 1]], "mlps": [], "order": "gradual"}')
    run.fails(3, "has no scores by component", "roc", tmp_path / "c.json", "--against", "ioi")


def test_bad_arguments(tmp_path: Path, run: Run) -> None:
    path = save_trace(tmp_path / "c.json", shape=GraphShape(12, 12, 8))
    run.fails(3, "choose from ioi, greater-than, acronym", "roc", path, "--against", "nonsense")
    run.fails(2, "ends in .png or .svg", "roc", path, "--against", "ioi", "--plot", tmp_path / "roc.pdf")
    run.fails(3, "cannot read", "roc", tmp_path / "gone.json", "--against", "ioi")


@pytest.mark.parametrize(("package", "says"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, says: str
) -> None:
    found = rank_components("c", make_file(), make_reference((0, 0)))
    real = builtins.__import__

    def fail(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingRuntimeError, match=rf"{says}; pip install 'export-circuit\[compare\]'"):
        if package == "sklearn":
            rank_components("c", make_file(), make_reference((0, 0)))
        plot_roc(found, tmp_path / "roc.png")
