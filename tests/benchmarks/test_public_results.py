"""Public data: figures are stored, and nothing of what others have written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import public_results
import pytest
from manifests import DATA
from public_results import END, START, main

from exporter.studies.compare_record import Comparison, Point, Result

SECRET = "nobody may copy this"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """The program on the folder `data`; what it stores, and its page."""
    (tmp_path / "data").mkdir()
    page, results = tmp_path / "page.md", tmp_path / "public.json"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")

    def run(*options: object) -> tuple[list[dict[str, Any]], str]:
        places = ("--results", results, "--page", page)
        monkeypatch.setattr("sys.argv", ["public", str(tmp_path / "data"), *map(str, (*places, *options))])
        main()
        return json.loads(results.read_text()), page.read_text()

    return run


def make_point(contestant: str, right: str) -> Point:
    return Point(contestant, contestant, "none", 5, 7, right, {}, 1.0, 0.25, 3.0, (2.0, 4.0))


def test_only_figures_are_stored(start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "mine.jsonl").write_text(SECRET)
    (tmp_path / "data" / "notes.txt").write_text(SECRET)
    latency = {"batch": 1, "threads": 1, "dense": 0.02, "circuit": 0.004, "speedup": 5.0, "speedup_ci95": [4.0, 6.0]}
    shown = {"set": "test", "tokens": SECRET.split()}
    manifest = DATA | {
        "task": {"name": str(tmp_path / "mine.jsonl"), "parameters": {"path": SECRET}, "sha256": "00"},
        "latency": [latency, latency | {"batch": 32}], "prompts": [shown], "attention": shown, "notes": [SECRET],
        "command": SECRET, "wall_seconds": 3.0, "peak_rss_gib": 1.0,
    }  # fmt: skip
    asked: list[Any] = []

    def compare(options: Any) -> Comparison:
        asked.append(options)
        results = {
            "dense": Result((make_point("dense", "1110"),), SECRET),
            "tfidf-svm": Result((make_point("tfidf-svm", "10"),)),
        }
        return Comparison({"prompts": "00"}, {"host": SECRET}, {"patching": 900, "selection": 100}, "form", results)

    monkeypatch.setattr(public_results, "run_task", lambda *given: asked.append(given) or manifest)
    monkeypatch.setattr(public_results, "run_comparison", compare)
    (run,), page = start("--lines", 500)
    assert run["key"] == {"task": "mine.jsonl", "model": "smollm2", "lines": 500}
    assert asked[0][2][-2:] == ["--patching-prompts", "500"] and asked[1].prompts.patching == 500
    assert page.startswith(f"before\n{START}\n| task, model") and page.endswith(f"{END}\nafter\n")
    assert "| mine, smollm2 | 1,000 | 50.0 | 50.0 [40.0, 60.0] | -50.0 % | 4.00 ms (5.0 x) |" in page
    assert page.count("50.0 (0.25 ms)") == 1  # the svm; the dense model has a column already
    runs, page = start("--model", tmp_path / "data")
    assert [run["key"]["model"] for run in runs] == ["data", "smollm2"] and page.count("| mine, ") == 2
    (tmp_path / "mine.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "wall_seconds"}))
    n_asked = len(asked)
    (done, _), _ = start("--jobs", tmp_path, "--model", tmp_path / "data")
    assert len(asked) == n_asked + 1 and done["job"] == runs[0]["job"] | {"wall_seconds": None}  # compared alone
    for text in (page, (tmp_path / "public.json").read_text()):
        assert SECRET not in text and str(tmp_path) not in text and "copy" not in text


def test_a_folder_without_task_files_is_refused(start: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit, match=r"has no task file; give a folder with some that end in \.jsonl or \.csv"):
        start()


@pytest.mark.slow
def test_a_made_up_file_from_beginning_to_end(
    start: Callable[..., Any], tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    words = ["zebra", "quartz", "violin", "marmot", "lagoon", "pepper"]
    rng = random.Random(0)
    rows = []
    for n, name in ((120, "patching"), (40, "selection"), (40, "test")):
        for _ in range(n):
            good = rng.random() < 0.5
            text = " ".join([*rng.choices(words, k=4), "superb" if good else "dreadful", "It was"])
            answer = " great" if good else " terrible"
            rows.append({"prompt": text, "answer": answer, "choices": [" great", " terrible"], "split": name})
    unique = {row["prompt"]: row for row in rows}.values()
    (tmp_path / "data" / "made.jsonl").write_text("\n".join(map(json.dumps, unique)))
    (run,), page = start("--model", make_checkpoint(), "--baselines", "dense,tfidf-logistic,embeddings")
    accuracy = {point["contestant"]: point["accuracy"] for point in run["baselines"]}
    assert accuracy["tfidf-logistic"] == 1.0 and set(accuracy) == {"dense", "tfidf-logistic", "embeddings"}
    assert run["job"]["size"]["reduction"] >= 0.95 and run["job"]["test"]["n"] == run["prompts"]["test"]
    for text in (page, (tmp_path / "public.json").read_text()):
        assert not any(word in text for word in (*words, "superb", "dreadful", str(tmp_path)))
