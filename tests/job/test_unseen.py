"""The search never reads the test set or an unseen set: a marker stands in their prompts, and is not met before."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.job import build
from exporter.job.options import Job
from exporter.job.run import run_job
from exporter.loading.load import load_model
from exporter.network.model import CircuitModel
from exporter.search import gradual
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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The token ids that any network or file is given, by the stage of the job."""
    found: dict[str, set[int]] = defaultdict(set)
    stage = ["load"]
    embed, compare = CircuitModel.embed, build.compare_latency

    def embed_and_note(self: CircuitModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        found[stage[0]].update(ids.unique().tolist())
        return embed(self, ids, *rest)

    def compare_and_note(reference: Path, path: Path, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        found[f"{stage[0]}, timed"].update(ids.unique().tolist())
        return compare(reference, path, ids, *rest, **options)

    monkeypatch.setattr(CircuitModel, "embed", embed_and_note)
    monkeypatch.setattr(build, "compare_latency", compare_and_note)
    monkeypatch.setattr(build.Clock, "stage", _note_stage(build.Clock.stage, stage))
    return found


def _note_stage(enter: Callable[..., Any], stage: list[str]) -> Callable[..., Any]:
    def note(clock: build.Clock, name: str) -> Any:
        if clock.on_stage is not None:  # a rehearsal goes through the later stages, and is a stage of its own
            stage[0] = name
        return enter(clock, name)

    return note


@pytest.mark.parametrize("budget", [None, Budget(max_params="20%", max_latency_ms=1000.0)], ids=["paper", "deploy"])
def test_the_search_reads_no_prompt_that_it_is_judged_by(
    budget: Budget | None,
    marked: Path,
    seen: dict[str, set[int]],
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradual, "LEAST_STEPS", 2)
    monkeypatch.setattr(gradual, "MOST_STEPS", 4)
    monkeypatch.setattr(build, "LATENCY_BLOCKS", 2)
    checkpoint = make_checkpoint()
    tokenizer = load_model(checkpoint).tokenizer
    marks = {name: tokenizer.encode(text) for name, text in MARKERS.items()}
    assert all(len(ids) == 1 for ids in marks.values())
    job = Job(str(marked), marked.parent / "m.onnx", model=str(checkpoint), budget=budget, force=True)
    run_job(job, on_stage=lambda _name: None)

    def met(stage: str) -> set[str]:
        return {name for name, (token,) in marks.items() if token in seen[stage]}

    assert met("search") == {"patching", "selection"}
    assert met("search, timed") == (set() if budget is None else {"patching"})
    assert met("evaluate") == {"test", "ood:far"}  # what the recorder does find, once they are judged
    assert (
        "test" in met("rehearse") and "rehearse" < "search"
    )  # it goes through all stages, and tells the search nothing
