"""The search never reads the test set or an unseen set: a marker stands in their prompts, and is not met before."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.job import timing
from exporter.job.options import Job
from exporter.job.run import run_job
from exporter.loading.load import load_model
from exporter.network.model import CircuitModel
from exporter.network.positions import Positions
from exporter.search import rounds
from exporter.search.rules import Budget

MARKERS = {"patching": " Italy", "selection": " Spain", "test": " Portugal", "ood:far": " Greece"}
YES_NO = [" yes", " no"]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A task whose prompts name their set; half of the patching lines have no answer."""
    rows = []
    for name, marker in MARKERS.items():
        for i in range(16):
            answer = {} if name == "patching" and i % 2 else {"answer": YES_NO[i // 2 % 2]}
            rows.append({"prompt": f"In{marker}, is {i} even? Say", "choices": YES_NO, "split": name} | answer)
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Recorder:
    """The token ids that any network or timed file is given, by the stage of the job."""

    def __init__(self) -> None:
        self.stage = "start"
        self.tokens: dict[str, set[int]] = defaultdict(set)

    def enter(self, stage: str) -> None:
        self.stage = stage

    def note(self, ids: torch.Tensor, kind: str = "") -> None:
        self.tokens[self.stage + kind].update(ids.unique().tolist())


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """One that is there from the job's beginning to its end."""
    found = Recorder()
    embed, compare = CircuitModel.embed, timing.compare_latency

    def embed_and_note(model: CircuitModel, ids: torch.Tensor, at: Positions) -> torch.Tensor:
        found.note(ids)
        return embed(model, ids, at)

    def compare_and_note(reference: Path, path: Path, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        found.note(ids, ", timed")
        return compare(reference, path, ids, *rest, **options)

    monkeypatch.setattr(CircuitModel, "embed", embed_and_note)
    monkeypatch.setattr(timing, "compare_latency", compare_and_note)
    return found


@pytest.mark.parametrize(
    ("alpha", "budget"),
    [(0.01, None), (None, Budget(max_params="20%", max_latency_ms=1000.0))],
    ids=["paper", "deploy"],
)
def test_the_search_reads_no_prompt_that_it_is_judged_by(
    alpha: float | None,
    budget: Budget | None,
    marked: Path,
    recorder: Recorder,
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "LEAST_ROUND", 2)
    monkeypatch.setattr(rounds, "MOST_STEPS", 4)
    monkeypatch.setattr(timing, "LATENCY_BLOCKS", 2)
    checkpoint = make_checkpoint()
    tokenizer = load_model(checkpoint).tokenizer
    marks = {name: tokenizer.encode(text) for name, text in MARKERS.items()}
    assert all(len(ids) == 1 for ids in marks.values())
    job = Job(str(marked), marked.parent / "m.onnx", model=str(checkpoint), alpha=alpha, budget=budget, force=True)
    run_job(job, on_stage=recorder.enter)

    def met(stage: str) -> set[str]:
        return {name for name, (token,) in marks.items() if token in recorder.tokens[stage]}

    assert met("search") == {"patching", "selection"}
    assert met("search, timed") == (set() if budget is None else {"patching"})
    assert met("evaluate") == {"test", "ood:far"}  # what the recorder does find, once they are judged
    # before the search a few prompts go through all later stages; the search gets nothing of it
    assert "test" in met("rehearse")
