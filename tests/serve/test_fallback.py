"""The dense model as a fallback: it answers what the circuit disowns, and says that it did."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import make_bundle, make_tokenizer

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from serving import ANSWERS, KNOWN, VOCAB
from starlette.testclient import TestClient

from exporter.circuit import Head
from exporter.errors import InputError
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel, load_model
from exporter.serve import fallback
from exporter.serve.app import make_app
from exporter.serve.settings import Settings


@pytest.fixture
def dense(save_gpt2: Callable[..., Path]) -> LanguageModel:
    return load_model(str(save_gpt2(vocab_size=VOCAB, n_positions=24)))


@pytest.fixture
def folder(dense: LanguageModel, tmp_path: Path) -> Path:
    graph = GraphOptions(form="plain", logits="answers", answer_ids=ANSWERS, vocabulary=KNOWN)
    model = replace(dense, tokenizer=make_tokenizer())
    circuit = {"heads": [Head(0, 1)], "mlps": (1,)}
    return make_bundle(tmp_path / "bundle", model=model, form="plain", graph=graph, **circuit).folder


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child process does, without its start."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, fallback._main(*command[3:]), stderr="")

    monkeypatch.setattr(fallback.subprocess, "run", run)


@pytest.mark.usefixtures("_in_this_process")
def test_the_dense_model_answers_what_the_circuit_disowns(folder: Path, dense: LanguageModel) -> None:
    prompts = [[1, 2, 3], [1, KNOWN[-1] + 5, 3], [4, 5], [30]]
    with TestClient(make_app(folder, Settings(fallback="dense"))) as client:
        found = client.post("/v1/predict", json={"token_ids": prompts, "top": 2}).json()["predictions"]
        alone = client.post("/v1/predict", json={"token_ids": prompts[0], "top": 2}).json()["predictions"][0]
        assert client.get("/v1/model").json()["fallback"] == "dense"
        assert 'prompts_total{source="dense"} 2.0' in client.get("/metrics").text
        refused = client.post("/v1/predict", json={"token_ids": [[1] * 25]}).json()["error"]  # for both too long
        assert (refused["code"], refused["prompt"]) == ("wrong_length", 0)
    assert [one["source"] for one in found] == ["circuit", "dense", "circuit", "dense"]
    assert found[0] == alone
    for ids, one in zip(prompts, found, strict=True):
        if one["source"] == "dense":
            shares = dense.hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
            assert [choice["token_id"] for choice in one["choices"]] == shares.topk(2).indices.tolist()
            assert one["probability"] == pytest.approx(shares.max().item(), rel=1e-4)
            assert one["label"] is None


def test_without_one_the_request_is_refused(folder: Path) -> None:
    with TestClient(make_app(folder)) as client:
        assert client.post("/v1/predict", json={"token_ids": [30]}).json()["error"]["code"] == "out_of_vocabulary"


@pytest.mark.slow
def test_it_is_written_by_a_process_of_its_own(folder: Path) -> None:
    with TestClient(make_app(folder, Settings(fallback="dense"))) as client:
        assert client.post("/v1/predict", json={"token_ids": [30]}).json()["predictions"][0]["source"] == "dense"


@pytest.mark.slow
def test_what_goes_wrong_there_is_said_here(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no fallback: .*nowhere"):
        make_app(folder, Settings(fallback="dense", dense_model=str(tmp_path / "nowhere")))
