"""Parts of an int8 file that stay in float32: those that rounding spoils, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from checkpoints import edit_weights
from conftest import Run
from jobs import CIRCUIT, SMALL
from tiny import VOCAB, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import ExactnessError, InputError
from exporter.graph.export import export_onnx, list_parts
from exporter.graph.options import GraphOptions
from exporter.job import rounding
from exporter.job.rounding import choose_rounding, leave_in_fp32
from exporter.loading.load import LanguageModel
from exporter.metrics.statistics import Accuracy
from exporter.network.model import CircuitModel
from exporter.outputs.manifest import Manifest
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import open_session, run_logits
from exporter.search.rules import Budget
from exporter.tasks.dataset import Dataset
from exporter.verify.figures import Served

WHOLE = Circuit((Head(0, 0), Head(0, 1), Head(1, 0), Head(1, 1)), (0, 1), Ablation(by="global"))
INT8 = GraphOptions(logits="last", precision="int8", scales="token")


def spoil(tensors: Mapping[str, torch.Tensor], part: str) -> None:
    """A unit that adds nothing, for it is always 0, and would do so with weights far above all others."""
    kind, layer = part
    width = len(tensors["wte.weight"].T)
    names = {"m": ("mlp.c_fc", 0), "a": ("attn.c_attn", 2 * width)}  # a neuron; the first value of the first head
    name, column = names[kind]
    tensors[f"h.{layer}.{name}.weight"][:, column] = 0
    tensors[f"h.{layer}.{name}.bias"][column] = 0
    tensors[f"h.{layer}.{name.split('.')[0]}.c_proj.weight"][0] = 1e3


def make_spoilt(*parts: str) -> tuple[LanguageModel, CircuitModel, Dataset]:
    """A model with spoilt parts, the same rewritten, and the prompts on which it is surest, with its own answers."""
    model = make_model(d_head=32, d_mlp=128, seed=3)
    with torch.no_grad():
        for part in parts:
            spoil(model.hf.transformer.state_dict(), part)
    rewritten = rewrite_model(model, WHOLE, make_prompts(8, 6))
    ids = make_prompts(200, 6, seed=1).input_ids
    best = rewritten.next_token_logits(ids).topk(2)
    sure = (best.values[:, 0] - best.values[:, 1]).topk(60).indices
    return model, rewritten, Dataset(ids[sure], best.indices[sure, 0])


@pytest.mark.parametrize("parts", [(), ("m1",), ("a1",), ("m0", "a1")], ids=str)
def test_what_rounding_spoils_stays_in_fp32_and_only_that(parts: tuple[str, ...]) -> None:
    model, rewritten, selection = make_spoilt(*parts)
    options = choose_rounding(model.dense, rewritten, INT8, selection, {"min_accuracy": "-1pt"})
    assert sorted(options.in_fp32) == sorted(parts)
    assert choose_rounding(model.dense, rewritten, INT8, selection, None) is INT8
    fp16 = GraphOptions(logits="last", precision="fp16")
    assert choose_rounding(model.dense, rewritten, fp16, selection, {"min_accuracy": "-1pt"}) is fp16


def judge_by(kl: Mapping[str, float], accuracy: Callable[[tuple[str, ...]], float]) -> Callable[..., Served]:
    """A judge that knows the KL of a file with one part in int8, and the accuracy with several in float32."""

    def judge(_model: object, _options: object, in_fp32: tuple[str, ...], _prompts: object) -> Served:
        right = round(100 * accuracy(in_fp32))
        rounded = [part for part in kl if part not in in_fp32]
        return Served(100, Accuracy.of(right, 100), 0.95, 1.0, 0.0, 1.0, kl[rounded[0]] if len(rounded) == 1 else 0.0)

    return judge


def test_parts_stay_by_what_they_lose_until_the_accuracy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, selection = make_spoilt()
    kl = dict(zip(list_parts(model), (0.001, 0.9, 0.002, float("nan"), 0.003, 0.004), strict=True))
    monkeypatch.setattr(rounding, "_judge", judge_by(kl, lambda parts: 0.94 if len(parts) < 3 else 0.95))
    assert leave_in_fp32(model, INT8, selection, least=0.95).in_fp32 == ("a1", "a0", "unembed")
    assert leave_in_fp32(model, INT8, selection, least=0.94).in_fp32 == ()
    monkeypatch.setattr(rounding, "MOST_PARTS", 2)
    message = r"even with a1, a0 in fp32: accuracy 94.0% on the selection set where fp32 has 95.0%.*take --precision"
    with pytest.raises(ExactnessError, match=message):
        leave_in_fp32(model, INT8, selection, least=0.95)


def test_a_circuit_that_lacks_accuracy_already_is_to_lose_none() -> None:
    model, rewritten, selection = make_spoilt()
    wrong = Dataset(selection.input_ids, (selection.answer_ids[:, 0] + 1) % VOCAB)
    assert choose_rounding(model.dense, rewritten, INT8, wrong, {"min_accuracy": "0.9"}).in_fp32 == ()


@pytest.mark.parametrize("options", [{}, {"target": "ort", "scales": "tensor"}, {"logits": "all"}])
@pytest.mark.parametrize("tied", [True, False])
def test_with_all_parts_in_fp32_the_file_is_exact(options: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = rewrite_model(make_model(d_head=8, tied=tied), WHOLE, make_prompts(8, 6))
    ids, parts = make_prompts(16, 6, seed=3).input_ids, list_parts(model)
    some = {name: value for name, value in INT8.to_json().items() if name not in options} | options
    for left in (parts, parts[:-1], ["unembed"], ["W_E"], parts[1:-1]):
        path = tmp_path / "m.onnx"
        export_onnx(model, path, GraphOptions.from_json(some | {"in_fp32": left}))
        onnx.checker.check_model(str(path), full_check=True)
        logits = torch.from_numpy(run_logits(open_session(path), ids.numpy()))
        expected = model(ids)[:, -logits.shape[1] :]
        apart = float((logits - expected).abs().max())
        assert apart < 1e-4 if left == parts else 1e-4 < apart < 5


def test_parts_that_are_none_are_refused(tmp_path: Path) -> None:
    model = make_model().dense
    with pytest.raises(InputError, match="in_fp32 has 'a7', and the parts of this model are W_E, a0, m0, a1, m1, unem"):
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(precision="int8", in_fp32=("a7",)))
    with pytest.raises(InputError, match="in_fp32 is for int8, not fp32"):
        GraphOptions(in_fp32=("a0",))
    with pytest.raises(InputError, match="in_fp32"):
        GraphOptions(precision="int8", in_fp32=(3,))  # type: ignore[arg-type]
    for data in ({"max": 3}, {"min_accuracy": 1}, {"batch": "x"}):
        with pytest.raises(InputError, match=r"max|min_accuracy|batch"):
            Budget.from_json(data)


@pytest.fixture
def spoilt(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint with a weight in its second MLP that 8 bits cannot hold beside the others."""
    folder = tmp_path / "spoilt"
    shutil.copytree(make_checkpoint(), folder)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        plain["wte.weight"] *= 20
        for name in ("h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.weight"):
            plain[name] *= 50
        spoil(plain, "m1")

    edit_weights(folder, change)
    return folder


def test_a_job_says_what_stayed(spoilt: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    job = ("--task", "acronym", "--model", spoilt, "--circuit", tmp_path / "c.json", "--precision", "int8", *SMALL)
    # without a budget nothing stays
    run.fails(4, "in int8 the circuit is right or wrong as in fp32", *job, "--out", tmp_path / "m.onnx")
    found = json.loads(CIRCUIT) | {"order": "gradual", "budget": {"max_params": "3%"}}
    (tmp_path / "c.json").write_text(json.dumps(found))
    said = run.succeeds(*job, "--out", tmp_path / "m.onnx", "--bundle", tmp_path / "b")
    assert "int8, m1 in fp32" in said
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest.export.in_fp32 == ["m1"]
    card = (tmp_path / "b" / "README.md").read_text()
    assert "Of its parts m1 stayed in fp32: in int8 they lost more than the budget allows." in card
    assert "is exact" in run.succeeds("verify", tmp_path / "m.onnx")
    run.fails(3, "is no budget", *job[:4], "--circuit", break_budget(tmp_path), *job[6:], "--out", tmp_path / "n.onnx")


def break_budget(folder: Path) -> Path:
    """A circuit file with a budget that is none."""
    path = folder / "d.json"
    path.write_text(json.dumps(json.loads(CIRCUIT) | {"budget": {"max_size": 3}}))
    return path
