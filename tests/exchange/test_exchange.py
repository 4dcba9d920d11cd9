"""Others' own code reads what we write: the same circuit, the same logits, the same faithfulness.

In an environment of its own, for TransformerLens: `make test-exchange EAP_IG=folder MIB=folder`. EAP-IG and MIB are on
no package index, so that both are folders of a checkout; EAP-IG's at the commit that MIB names as its submodule.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, make_model, make_prompts

from exporter.circuit import (
    Ablation,
    Circuit,
    Decision,
    SearchRecord,
    graph_to_json,
    parse_component,
    read_circuit_file,
)
from exporter.loading.load import LanguageModel
from exporter.rewrite.surgery import rewrite_model
from exporter.tasks.dataset import Dataset

ALPHA = 0.08
INTERVENTIONS = {"zero": Ablation("zero"), "mean-positional": Ablation("mean", "position")}
PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)  # MIB's
MODELS = {
    "gpt2": {"n_layers": 3, "n_heads": 4, "activation": "gelu_new"},
    "llama": {"n_layers": 2, "n_heads": 4, "num_key_value_heads": 2},
    "gpt_neox": {"n_layers": 2, "n_heads": 3, "rotary_pct": 1.0, "use_parallel_residual": True},
}


def find_settings() -> list[str]:
    """Interpreter, EAP-IG and MIB; skips where they are not named."""
    names = ("PYTHON", "EAP_IG", "MIB")
    values = [os.environ.get(f"EXPORT_CIRCUIT_EXCHANGE_{name}", "") for name in names]
    if not values[0] or not values[1]:
        pytest.skip("needs TransformerLens and a checkout of EAP-IG: make test-exchange EAP_IG=folder MIB=folder")
    return [value for value in values if value]


@dataclass(frozen=True, eq=False)
class Side:
    """What both sides start from, and what theirs found."""

    model: LanguageModel
    patching: Dataset
    prompts: Dataset
    files: dict[str, Path]
    theirs: dict[str, Any] = field(default_factory=dict)


def make_record(model: LanguageModel) -> SearchRecord:
    """A trace over all components with scores that are all different, as if of a search."""
    names = [name for name in model.dense.shape.nodes() if name != "input"]
    scores = torch.randperm(len(names), generator=torch.Generator().manual_seed(5)) / 50 + 0.01
    trace = [
        Decision(parse_component(name), 0.0, float(score), bool(score < ALPHA))
        for name, score in zip(names, scores, strict=True)
    ]
    return SearchRecord(alpha=ALPHA, order="paper", trace=tuple(trace))


def keep_top(record: SearchRecord, n: int, ablation: Ablation) -> Circuit:
    """The n components with the highest scores."""
    ranked = sorted(record.scores, key=lambda component: -record.scores[component])[:n]
    chosen = [str(component) for component in ranked]
    return Circuit(
        heads=tuple((c.layer, c.index) for c in ranked if str(c).startswith("a")),
        mlps=tuple(parse_component(name).layer for name in chosen if name.startswith("m")),
        ablation=ablation,
    )


def describe_prompts(data: Dataset) -> dict[str, Any]:
    answers = [[(int(last) + 1) % VOCAB, (int(last) + 2) % VOCAB] for last in data.input_ids[:, -1]]
    return {"ids": data.input_ids.tolist(), "answers": answers}


def make_side(family: str, folder: Path) -> tuple[Side, dict[str, Any]]:
    """A model, prompts and graph files in a folder, and the job that names them."""
    model = make_model(family, d_head=4, tied=family == "gpt2", **MODELS[family])
    model.hf.save_pretrained(folder / "model")
    side = Side(model, make_prompts(9, 7, seed=1), make_prompts(6, 7, seed=2), {})
    record, graphs = make_record(model), {}
    n_kept = sum(score >= ALPHA for score in record.scores.values())
    for intervention, ablation in INTERVENTIONS.items():
        circuit = keep_top(record, n_kept, ablation)
        for kind, found in (("plain", SearchRecord()), ("scored", record)):
            path = side.files[f"{kind} {intervention}"] = folder / f"{kind}-{intervention}.json"
            path.write_text(json.dumps(graph_to_json(circuit, model.dense.shape, found)))
            graphs[f"{kind} {intervention}"] = [str(path), intervention]
    prompts = {"prompts": describe_prompts(side.prompts), "patching": describe_prompts(side.patching)}
    return side, {"model": str(folder / "model"), "graphs": graphs, "alpha": ALPHA} | prompts


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Side]:
    """All models, with what their side found, in one process of theirs: importing TransformerLens takes a minute."""
    python, *folders = find_settings()
    folder = tmp_path_factory.mktemp("exchange")
    made = {family: make_side(family, folder / family) for family in MODELS}
    (folder / "jobs.json").write_text(json.dumps({family: job for family, (_, job) in made.items()}))
    command = [python, str(Path(__file__).with_name("their_side.py")), str(folder / "jobs.json"), *folders]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    return {family: replace(side, theirs=theirs[family]) for family, (side, _) in made.items()}


@pytest.fixture(params=list(MODELS))
def side(request: pytest.FixtureRequest, sides: dict[str, Side]) -> Side:
    return sides[request.param]


@pytest.mark.slow
def test_their_readers_find_the_same_circuit(side: Side) -> None:
    for name, found in side.theirs.items():
        file = read_circuit_file(side.files[name])
        ours = sorted([*map(str, file.circuit.components), "input", "logits"])
        assert found["nodes"] == ours
        assert found["circuitkit"] in (None, ours)
        kept = set(ours)
        assert found["edges"] == sum(source in kept for _, source, _ in side.model.dense.shape.edges())
        assert found["unscored"] == (0 if name.startswith("scored") else None)
        assert found.get("thresholded", ours) == ours


@pytest.mark.slow
def test_we_read_what_their_writer_writes(side: Side) -> None:
    for name in side.theirs:
        if name.startswith("plain"):
            ours, theirs = (read_circuit_file(path) for path in (side.files[name], f"{side.files[name]}.theirs"))
            assert theirs.losses == ()
            assert (theirs.circuit.heads, theirs.circuit.mlps) == (ours.circuit.heads, ours.circuit.mlps)


@pytest.mark.slow
def test_their_evaluation_computes_the_logits_of_our_small_model(side: Side) -> None:
    for name, found in side.theirs.items():
        circuit = read_circuit_file(side.files[name]).circuit
        small = rewrite_model(side.model, circuit, side.patching)
        ours = small.next_token_logits(side.prompts.input_ids)
        torch.testing.assert_close(torch.tensor(found["logits"]), ours, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_mibs_faithfulness_is_ours(side: Side) -> None:
    if not any("mib" in found for found in side.theirs.values()):
        pytest.skip("needs a checkout of MIB, and EAP-IG at the commit that it names")
    record, compared = make_record(side.model), 0
    for intervention, ablation in INTERVENTIONS.items():
        mib = side.theirs[f"scored {intervention}"]["mib"]
        for share, theirs in zip(PERCENTAGES, mib["faithfulness"], strict=True):
            n = int(share * side.model.dense.shape.n_nodes)
            if n:  # without any node the embedding is gone, too, which no circuit of ours can say
                circuit = keep_top(record, n - 1, ablation)
                ours = difference(rewrite_model(side.model, circuit, side.patching), side.prompts)
                baseline = difference(side.model.dense, side.prompts)
                ours = (ours - mib["corrupted"]) / (baseline - mib["corrupted"])
                assert ours == pytest.approx(theirs, abs=1e-4)
                compared += 1
    assert compared >= 6


def difference(model: Any, prompts: Dataset) -> float:
    """The mean logit of the right answer less that of the wrong one."""
    answers = torch.tensor(describe_prompts(prompts)["answers"])
    right, wrong = model.next_token_logits(prompts.input_ids).gather(1, answers).unbind(1)
    return float((right - wrong).mean())


def test_without_the_settings_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORT_CIRCUIT_EXCHANGE_PYTHON", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make test-exchange"):
        find_settings()
    monkeypatch.setenv("EXPORT_CIRCUIT_EXCHANGE_PYTHON", sys.executable)
    monkeypatch.setenv("EXPORT_CIRCUIT_EXCHANGE_EAP_IG", "folder")
    monkeypatch.delenv("EXPORT_CIRCUIT_EXCHANGE_MIB", raising=False)
    assert find_settings() == [sys.executable, "folder"]
