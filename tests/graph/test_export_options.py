"""The options of the exported file at the command line: what is left, what is said of it, what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import EVEN, make_bundle, make_dense, to_text
from conftest import Run
from disks import mounted
from jobs import CIRCUIT, SMALL
from tiers import as_slow

from exporter.errors import InputError
from exporter.files import is_weights_name
from exporter.graph.export import read_metadata
from exporter.graph.metadata import EXAMPLES_KEY, Origin
from exporter.graph.options import GraphOptions
from exporter.job.build import N_EXAMPLES, _give_examples
from exporter.loading.load import load_model
from exporter.outputs.manifest import Manifest
from exporter.runtime.generate import generate_greedy
from exporter.runtime.session import has_provider, open_session, run_logits
from exporter.tasks import SplitSizes, load_task
from exporter.tasks.dataset import Dataset
from exporter.verify import precision as served


@pytest.fixture
def export(run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Callable[..., Manifest]:
    """The main job on a tiny checkpoint with a circuit given, into m.onnx."""
    (tmp_path / "c.json").write_text(CIRCUIT)

    def job(*options: object, task: str = "acronym") -> Manifest:
        run.succeeds(
            "--task", task, "--model", make_checkpoint(), "--circuit", tmp_path / "c.json", "--out",
            tmp_path / "m.onnx", "--force", *SMALL, *options,
        )  # fmt: skip
        return Manifest.load(tmp_path / "m.json")

    return job


def test_all_positions_are_given_where_that_is_asked_for(export: Callable[..., Manifest]) -> None:
    assert export("--logits", "all").onnx.outputs == {"logits": ["batch_size", 11, 50257]}


def test_answers_and_the_tasks_vocabulary(export: Callable[..., Manifest], tmp_path: Path, run: Run) -> None:
    full = export("--logits", "last").files["m.onnx"].bytes
    manifest = export("--logits", "answers", "--vocab", "task")
    letters = [32 + i for i in range(26)]
    assert set(manifest.export.answer_ids) < set(letters)
    assert manifest.onnx.outputs == {
        "logits": ["batch_size", 1, len(manifest.export.answer_ids)],
        "answer_token_ids": [len(manifest.export.answer_ids)],
        "in_vocabulary": ["batch_size"],
    }
    assert manifest.export.opening == 2  # <|endoftext|>The
    assert manifest.export.vocabulary is not None and 100 < manifest.export.vocabulary < 2000
    assert manifest.files["m.onnx"].bytes < full / 10
    assert manifest.export.served.agreement == 1.0 and manifest.export.served.n == 30
    assert Origin.read(tmp_path / "m.onnx").options.opening == (50256, 464)
    assert "is exact on 30 prompts" in run.succeeds("verify", tmp_path / "m.onnx")
    examples = json.loads(read_metadata(tmp_path / "m.onnx")[EXAMPLES_KEY])
    session = open_session(tmp_path / "m.onnx")
    ids = np.array(examples["input_ids"])
    top = np.array(manifest.export.answer_ids)[run_logits(session, ids)[:, -1].argmax(-1)]
    assert top.tolist() == examples["answers"] and examples["attention_mask"] is None
    ids[0, 4] = 11  # a comma
    with pytest.raises(InputError, match="not made for"):
        run_logits(session, ids)


def test_a_task_is_a_classifier(export: Callable[..., Manifest], tmp_path: Path, run: Run) -> None:
    manifest = export("--logits", "classes", "--vocab", "task")
    info = manifest.export
    assert manifest.onnx.outputs == {"logits": ["batch_size", len(info.labels)], "in_vocabulary": ["batch_size"]}
    assert info.labels == [chr(token - 32 + ord("A")) for token in info.answer_ids]
    assert Origin.read(tmp_path / "m.onnx").options.labels == tuple(info.labels)
    assert info.served.agreement == 1.0 and info.served.n == 30
    assert "is exact on 30 prompts" in run.succeeds("verify", tmp_path / "m.onnx")
    examples = json.loads(read_metadata(tmp_path / "m.onnx")[EXAMPLES_KEY])
    prompt = load_model("bundled").tokenizer.decode(examples["input_ids"][0])  # type: ignore[union-attr]
    found = json.loads(run.succeeds("run", tmp_path / "m.onnx", prompt, "--json"))
    assert run.succeeds("run", tmp_path / "m.onnx", prompt) == found["label"] + "\n"
    assert info.answer_ids[info.labels.index(found["label"])] == examples["answers"][0]
    assert set(found["scores"]) == set(info.labels) and found["scores"][found["label"]] == max(found["scores"].values())


@pytest.mark.parametrize("last", [("--out", "m.onnx"), ("--dry-run",)], ids=" ".join)
def test_classes_are_for_answers_of_one_token(last: tuple[str, str], run: Run, tmp_path: Path) -> None:
    run.fails(
        3, "--logits classes is for answers of one token, and those of acronym have up to 3; take --logits answers",
        "--task", "acronym", "--letters", "3", "--logits", "classes", *SMALL, *last,
    )  # fmt: skip


def test_the_examples_are_those_that_rounding_changes_least() -> None:
    dense = make_dense().dense
    ids = torch.randint(len(dense.W_E), (40, 5), generator=torch.Generator().manual_seed(0))
    found = json.loads(_give_examples(dense, Dataset(ids, ids[:, 0]), GraphOptions()))
    margins = dense.next_token_logits(ids).topk(2).values.diff().abs()[:, 0]  # (prompt,)
    surest = sorted(margins.argsort(descending=True)[:N_EXAMPLES].tolist())
    assert found["input_ids"] == ids[surest].tolist()
    assert found["answers"] == dense.next_token_logits(ids[surest]).argmax(-1).tolist()
    one = json.loads(_give_examples(dense, Dataset(ids, ids[:, 0]), GraphOptions(logits="answers", answer_ids=(3,))))
    assert one["answers"] == [3] * N_EXAMPLES


INT8 = (("--int8-weights", "int7"), ("--int8-scales", "token"), ("--target", "ort"))


@pytest.mark.parametrize("options", [as_slow((one,)) if one != INT8[1] else one for one in INT8], ids=" ".join)
def test_int8(options: tuple[str, ...], export: Callable[..., Manifest], tmp_path: Path, run: Run) -> None:
    manifest = export("--precision", "int8", *options, "--vocab", "task", "--logits", "answers")
    info = manifest.export
    assert (info.precision, info.scales) == ("int8", "token" if "token" in options else "tensor")
    assert info.batch_dependent == ("token" not in options)
    assert (info.weight_type, info.processors) == ("int7" if "int7" in options else "uint8", "all")
    mates = info.served.mates
    assert mates is not None and (mates.n, mates.batch, mates.changed) == (30, 30, 0.0)
    assert (mates.largest_difference < 1e-4) == ("token" in options)
    assert 0 < info.served.largest_difference < 1 and info.served.agreement >= 0.99
    assert manifest.exactness.rewritten_vs_onnx <= manifest.exactness.limit  # of the same graph in fp32
    domains = {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert domains == ({"", "com.microsoft"} if "ort" in options else {""})
    assert "is exact on 30 prompts" in run.succeeds("verify", tmp_path / "m.onnx")


def test_a_precision_that_answers_otherwise_leaves_nothing(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "LEAST_SAME", 1.01)
    (tmp_path / "c.json").write_text(CIRCUIT)
    run.fails(
        4, "in int8 the circuit is right or wrong as in fp32 .* no file was left: try --int8-scales token, or",
        "--task", "acronym", "--model", make_checkpoint(), "--circuit", tmp_path / "c.json", "--out",
        tmp_path / "m.onnx", *SMALL, "--precision", "int8",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_external_data_appears_and_goes_with_its_graph(export: Callable[..., Manifest], tmp_path: Path) -> None:
    graph, weights = export("--external-data").files
    assert (graph, is_weights_name(weights, "m.onnx")) == ("m.onnx", True)
    assert (tmp_path / weights).stat().st_size > 50257 * 16 * 4
    assert set(export("--external-data").files) == {graph, weights}  # the same export has the same names
    manifest = export()
    assert set(manifest.files) == {"m.onnx"}
    assert manifest.onnx.outputs == {"logits": ["batch_size", 1, 50257]}  # the last position is the default
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "m.json", "m.onnx"]


def test_weights_that_have_gone_from_beside_their_graph_are_missed(
    export: Callable[..., Manifest], tmp_path: Path, run: Run
) -> None:
    path, data = (tmp_path / name for name in export("--external-data").files)
    weights = data.read_bytes()
    for damage in (data.unlink, lambda: data.write_bytes(weights[:-1])):
        data.write_bytes(weights)
        damage()
        for command in (("verify", path), ("inspect", path), ("bench", path, "--against", path)):
            run.fails(3, "has its weights in .* put the two side by side, or export again", *command)


def test_a_disk_that_ends_within_external_data(tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        run.fails(
            3, r"no space left to write .*m\.onnx", "--task", "acronym", "--model", make_checkpoint(), "--circuit",
            tmp_path / "c.json", "--out", folder / "m.onnx", *SMALL, "--external-data",
        )  # fmt: skip
        assert not list(folder.iterdir())


def test_bf16_needs_cuda(tmp_path: Path, run: Run) -> None:
    if has_provider("cuda"):
        pytest.skip("CUDA is there")
    run.fails(6, "bf16 runs on CUDA alone", "--task", "acronym", "--out", tmp_path / "m.onnx", "--precision", "bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8-scales", "token"), "for --precision int8, not fp32"),
        (("--int8-weights", "int7"), "for --precision int8, not fp32"),
        (("--external-data", "--bundle", "b"), "leave one of them out"),
        (("--logits", "some"), "Invalid value"),
        (("--logits", "classes", "--with-past"), "--logits classes answers once; leave one of them out"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], message: str, run: Run, tmp_path: Path) -> None:
    code, _, err = run.all("--task", "acronym", "--out", tmp_path / "m.onnx", *options)
    assert code == 2 and message in err


@pytest.mark.parametrize("task", ["acronym", "greater-than", "ioi"])
def test_every_prompt_of_a_task_is_in_its_vocabulary(task: str) -> None:
    tokenizer: Any = load_model("bundled").tokenizer
    small = load_task(task, tokenizer, sizes=SplitSizes(patching=2, selection=2, test=2, ood=1))
    large = load_task(task, tokenizer, seed=1, sizes=SplitSizes(patching=200, selection=200, test=200, ood=100))
    assert (small.input_ids, small.answer_ids) == (large.input_ids, large.answer_ids)  # the task's, not the draw's
    used = {token for d in (large.test, *large.ood.values()) for token in d.input_ids.flatten().tolist()}
    assert used <= set(small.input_ids) and len(small.input_ids) < 2000
    assert 20 <= len(small.answer_ids) <= 300


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_a_bundle_that_knows_some_tokens_decodes_among_its_answers(form: str, tmp_path: Path) -> None:
    graph = GraphOptions(form=form, logits="answers", answer_ids=(7, 3, 5), vocabulary=(1, 3, 4, 5, 7))
    bundle = make_bundle(tmp_path / "b", form=form, heads=EVEN, graph=graph)
    (found,) = generate_greedy(open_session(bundle.folder / "model.onnx"), [[3, 1, 4]], max_new_tokens=20)
    assert len(found.token_ids) >= 3 and set(found.token_ids) <= {3, 5, 7}
    command = [sys.executable, str(bundle.folder / "run.py")]
    text = subprocess.run([*command, to_text([3, 1, 4])], capture_output=True, text=True, check=True).stdout
    assert text.split()[3:] == to_text(found.token_ids).split()[: len(text.split()) - 3]
    other = subprocess.run([*command, to_text([3, 2])], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "does not know all tokens" in other.stderr
    card = (bundle.folder / "README.md").read_text()
    assert (
        "Optimum cannot generate with it" in card
        and "genai" not in card
        and not (bundle.folder / "genai_config.json").exists()
    )
    assert "for 3 answers, whose tokens are the output `answer_token_ids`" in card and "It knows 5 tokens" in card
