"""The main job end to end, on a small checkpoint with the real tokenizer."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import Run
from disks import mounted
from exports import corrupt
from jobs import SMALL
from nursery import Nursery
from tiers import as_slow, thin

from exporter.circuit import Circuit
from exporter.graph.description import OnnxDescription
from exporter.graph.export import export_onnx
from exporter.job import build
from exporter.job.options import Job
from exporter.job.plan import prepare
from exporter.loading.load import load_model
from exporter.outputs.manifest import Manifest
from exporter.rewrite.surgery import rewrite_model
from exporter.search.find import find_circuit
from exporter.tasks import SplitSizes, load_task


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A folder with one export, made once; nobody changes it."""
    folder = tmp_path_factory.mktemp("exported")
    Run().succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--out", folder / "m.onnx", *SMALL, "--alpha", "0.001"
    )  # fmt: skip
    return folder


def test_it_leaves_the_file_and_its_manifest(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["m.json", "m.onnx"]
    manifest = Manifest.load(exported / "m.json")
    assert manifest.files["m.onnx"].bytes == (exported / "m.onnx").stat().st_size
    assert manifest.exactness.hooked_vs_rewritten <= manifest.exactness.limit
    assert manifest.exactness.prompts == manifest.test.n == 30
    assert set(manifest.ood) == {"template", "words"}
    assert manifest.circuit["alpha"] == 0.001
    assert manifest.alpha_sweep is None
    (doubt,) = manifest.notes  # its weights are random
    assert "is not known to be better than chance at acronym: its accuracy is 0.0%" in doubt
    assert len(manifest.circuit["trace"]) == 2 * 2 + 2
    assert [latency.batch for latency in manifest.latency] == [1, 32]
    assert set(manifest.seconds) == {"load", "rehearse", "search", "rewrite", "export", "verify", "evaluate", "measure"}


def test_the_file_is_what_the_library_makes_of_the_same_circuit(
    exported: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """The Python API, step by step, gives the same circuit and the same logits."""
    model = load_model(make_checkpoint())
    data = load_task("acronym", model.tokenizer, sizes=SplitSizes(patching=20, selection=20, test=30))
    circuit = find_circuit(model, data.patching, data.selection, alpha=0.001)
    assert circuit == Circuit.load(exported / "m.json")
    logits = rewrite_model(model, circuit, data.patching)(data.test.input_ids)
    session = onnxruntime.InferenceSession(exported / "m.onnx")
    found = session.run(["logits"], {"input_ids": data.test.input_ids.numpy()})[0]
    np.testing.assert_allclose(found, logits[:, -1:], rtol=1e-4, atol=1e-4)


def test_the_manifests_sizes_are_those_of_the_model(exported: Path, make_checkpoint: Callable[..., Path]) -> None:
    hf, manifest = load_model(make_checkpoint()).hf, Manifest.load(exported / "m.json")
    embeddings = hf.transformer.wte.weight.numel() + hf.transformer.wpe.weight.numel()
    assert manifest.size.dense == sum(p.numel() for p in hf.parameters()) - embeddings
    circuit, d_model, d_head = manifest.get_circuit(), 16, 8
    size = 2 * d_model + len(circuit.mlps) * (8 * d_model**2 + 5 * d_model + 2 * d_model)
    for layer in (0, 1):
        n = len(circuit.heads_of(layer))
        size += n * (4 * d_model * d_head + 3 * d_head) + (d_model + 2 * d_model if n else 0)
    assert manifest.size.circuit == size


@pytest.mark.slow
def test_a_search_in_half_precision_exports_the_checkpoints_own_weights(
    exported: Path, tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]
) -> None:
    """The checkpoint is float32: weights that were rounded for the search do not get into the file."""
    out = tmp_path / "m.onnx"
    arguments = ("--task", "acronym", "--model", make_checkpoint(), "--out", out, *SMALL)
    run.succeeds(*arguments, "--alpha", "0.001", "--dtype", "bfloat16")
    narrow, wide = Manifest.load(tmp_path / "m.json"), Manifest.load(exported / "m.json")
    assert narrow.notes == ["the search computed in bfloat16", *wide.notes]
    assert narrow.circuit["trace"] != wide.circuit["trace"]
    assert narrow.exactness.hooked_vs_rewritten <= narrow.exactness.limit
    run.succeeds("verify", out)
    job = Job(task="acronym", out=None, model=str(make_checkpoint()), sizes=SplitSizes(20, 20, 30), preset="paper")
    plan = prepare(job)
    assert plan.search_key != replace(plan, job=replace(job, dtype="bfloat16")).search_key


def test_inspect_draws_the_circuit(exported: Path, run: Run) -> None:
    circuit, in_full = Circuit.load(exported / "m.json"), Manifest.load(exported / "m.json").circuit
    for name in ("m.onnx", "m.json"):
        text = run.succeeds("inspect", exported / name)
        assert text.count("■") == len(circuit.heads) + len(circuit.mlps)
        assert "acronym" in text
        assert json.loads(run.succeeds("inspect", exported / name, "--json"))["circuit"] == in_full


def test_inspect_says_when_the_manifest_is_of_another_file(exported: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "m.onnx").write_bytes((exported / "m.onnx").read_bytes())
    corrupt(tmp_path / "m.onnx", "W_pos", 0.1)
    (tmp_path / "m.json").write_text((exported / "m.json").read_text())
    assert "does not describe this file" in run.succeeds("inspect", tmp_path / "m.onnx")


def test_verify_passes_the_file_and_refuses_a_changed_weight(exported: Path, tmp_path: Path, run: Run) -> None:
    assert json.loads(run.succeeds("verify", exported / "m.onnx", "--json"))["prompts"] == 30
    assert "is exact on 30 prompts" in run.succeeds("verify", exported / "m.onnx")
    (tmp_path / "m.onnx").write_bytes((exported / "m.onnx").read_bytes())
    corrupt(tmp_path / "m.onnx", "W_pos", 0.5)
    run.fails(4, "rewritten vs onnx: logits differ", "verify", tmp_path / "m.onnx")
    run.fails(3, "are not those the circuit came from", "verify", exported / "m.onnx", "--model", "bundled")


def test_a_corrupted_weight_ends_the_job_and_leaves_nothing(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_corrupted(model: Any, path: Path, *args: Any, **options: Any) -> OnnxDescription:
        description = export_onnx(model, path, *args, **options)
        corrupt(path, "W_pos", 0.5)
        return description

    monkeypatch.setattr(build, "export_onnx", export_corrupted)
    message = run.fails(
        4, "rewritten vs onnx", "--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL,
        "--alpha", "0.02",
    )  # fmt: skip
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_json_prints_the_manifest_and_nothing_else(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "c.json").write_text('{"heads": [[0, 1]], "mlps": [1], "mean": "global"}')
    out = run.succeeds(
        "--task", "greater-than", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL,
        "--circuit", tmp_path / "c.json", "--json",
    )  # fmt: skip
    assert out == (tmp_path / "m.json").read_text()
    manifest = Manifest.from_json(out)
    assert manifest.circuit["heads"] == [[0, 1]]
    assert manifest.circuit["order"] == "given"
    assert manifest.onnx.inputs == {"input_ids": ["batch_size", "sequence_length"]}


def test_quiet_prints_nothing_and_seed_changes_the_prompts(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "c.json").write_text('{"heads": [], "mlps": [1]}')
    hashes = []
    for seed in ("0", "1"):
        assert run.succeeds(
            "--task", "ioi", "--template", "paper", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL,
            "--circuit", tmp_path / "c.json", "--quiet", "--force", "--seed", seed,
        ) == ""  # fmt: skip
        manifest = Manifest.load(tmp_path / "m.json")
        assert manifest.task.parameters["template"] == "paper"
        hashes.append(manifest.task.sha256)
    assert hashes[0] != hashes[1]


STRUCK = ("load", "search", "verify")  # by default
STAGES = ["load", "rehearse", "search", "rewrite", "export", "verify", "evaluate", "measure"]

INTERRUPTED = """
import signal
from exporter.job import run as pipeline
stage = pipeline.Clock.stage
def strike(self, name):
    if name == {stage!r}:
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # somewhere inside
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    return stage(self, name)
pipeline.Clock.stage = strike
"""


@pytest.mark.parametrize(
    ("stage", "before"),
    thin([*((stage, "nothing") for stage in STAGES), ("verify", "an older set")], lambda case: case[0] in STRUCK),
)
def test_ctrl_c_in_any_stage_leaves_what_was_there(
    stage: str, before: str, nursery: Nursery, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    old = {}
    if before == "an older set":
        old = {name: b"old " + name.encode() for name in ("m.onnx", "m.json")}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    arguments = ("--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL, "--force")
    arguments = (*arguments, "--alpha", "0.02")  # or a warning on stderr
    found = nursery.run(arguments, first=INTERRUPTED.format(stage=stage))
    assert found == (128 + signal.SIGINT, "", "export-circuit: interrupted\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_full_disk_ends_the_job_in_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """The ONNX file alone needs three times what the disk holds."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        arguments = ("--task", "acronym", "--model", make_checkpoint(), "--out", folder / "m.onnx", *SMALL)
        run.fails(3, "no space left", *arguments, "--alpha", "0.02")
        assert not list(folder.iterdir())


def test_a_read_only_folder_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs") as folder:
        out = folder / "m.onnx"
        run.fails(3, "Read-only file system", "--task", "acronym", "--model", "bundled", "--out", out)


@pytest.mark.parametrize(
    ("n_embd", "dense", "circuit"), [(96, 1_342_272, 230_160), as_slow((768, 85_056_000, 14_571_648))]
)
def test_gpt2_smalls_shape_goes_through_all_later_stages(
    n_embd: int, dense: int, circuit: int, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Random weights and a circuit given by hand: two heads, three MLPs; by default an eighth as wide."""
    folder = make_checkpoint(n_layer=12, n_head=12, n_embd=n_embd)
    (tmp_path / "c.json").write_text('{"heads": [[7, 10], [9, 1]], "mlps": [8, 9, 10]}')
    run.succeeds(
        "--task", "acronym", "--model", folder, "--circuit", tmp_path / "c.json", "--out", tmp_path / "m.onnx",
        "--patching-prompts", "16", "--selection-prompts", "1", "--test-prompts", "16",
    )  # fmt: skip
    manifest = Manifest.load(tmp_path / "m.json")
    assert (manifest.size.dense, manifest.size.circuit) == (dense, circuit)
    assert manifest.onnx.nodes <= 60


def test_the_bundled_model_is_chosen_when_gpt2_cannot_be_had(run: Run, tmp_path: Path) -> None:
    """Offline, as the whole suite is: one warning line, and the same words in the manifest."""
    (tmp_path / "c.json").write_text('{"heads": [], "mlps": []}')
    code, out, err = run.all(
        "--task", "acronym", "--out", tmp_path / "m.onnx", "--circuit", tmp_path / "c.json", *SMALL, "--json"
    )
    assert code == 0
    (note,) = json.loads(out)["notes"]
    assert err == f"export-circuit: warning: {note}\n"
    assert "using the bundled model instead of openai-community/gpt2" in note


@pytest.mark.parametrize(
    ("task", "n"), [("acronym", 60), *(as_slow((task, 500)) for task in ("acronym", "greater-than", "ioi"))]
)
def test_the_default_circuit_of_the_bundled_model_is_faithful_and_half_the_size(
    task: str, n: int, run: Run, tmp_path: Path
) -> None:
    """By default on few prompts, and of all tasks on as many as the command line takes."""
    few = ("--patching-prompts", n, "--selection-prompts", n, "--test-prompts", n) if n < 500 else ()
    run.succeeds("--task", task, "--model", "bundled", "--out", tmp_path / "m.onnx", *few, "--preset", "paper")
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest.test.n == n
    assert manifest.test.circuit.accuracy >= manifest.test.dense.accuracy - 0.02
    assert manifest.size.reduction >= 0.5
    assert manifest.alpha_sweep["alpha"] == manifest.circuit["alpha"]
    assert manifest.test.dense.accuracy > 0.95
