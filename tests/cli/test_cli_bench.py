"""`export-circuit bench` as its user meets it. What it measures is real, but no bar here depends on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from conftest import Run
from slow_down import plant_mlp
from tiny import make_model
from waits import HANG

import exporter
from exporter.bench import run as run_module
from exporter.bench.baseline import Baseline
from exporter.graph.export import export_onnx

QUICK = ("--batch", 2, "--threads", 1, "--seconds", 0.1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A folder with m.onnx, which the main job made; nobody changes it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "c.json").write_text(json.dumps({"heads": [[0, 1]], "mlps": [1]}))
    sizes = ("--patching-prompts", "20", "--selection-prompts", "1", "--test-prompts", "20")
    Run().succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--circuit", folder / "c.json", *sizes,
        "--out", folder / "m.onnx",
    )  # fmt: skip
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of their own."""
    for name, n_layers in (("circuit", 1), ("dense", 4)):
        export_onnx(make_model(n_layers=n_layers).dense, tmp_path / f"{name}.onnx")
    return tmp_path / "circuit.onnx", tmp_path / "dense.onnx"


def test_the_dense_model_is_found_by_what_the_file_says(exported: Path, run: Run) -> None:
    out = run.succeeds("bench", exported / "m.onnx", *QUICK)
    assert "m.onnx against dense.onnx" in out and "GFLOPs, batch 2" in out
    found = json.loads(run.succeeds("bench", exported / "m.onnx", *QUICK, "--json"))
    (batch,) = found["batches"]
    assert batch["reference"]["parameters"] > batch["circuit"]["parameters"]
    assert batch["speedup"] > 0 and batch["rounds"] >= 7


def test_with_another_file_torch_is_not_needed(pair: tuple[Path, Path]) -> None:
    script = "\n".join([
        "import sys",
        "from exporter.__main__ import run_command",
        "code = run_command(sys.argv[1:])",
        "sys.exit(code or ' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)",
    ])  # fmt: skip
    arguments = ["bench", str(pair[0]), "--against", str(pair[1]), *map(str, QUICK)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=HANG, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(exporter.__file__).parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "circuit.onnx against dense.onnx" in done.stdout


def test_a_bar_that_is_missed_ends_with_5(pair: tuple[Path, Path], run: Run) -> None:
    circuit, dense = pair
    code, out, err = run.all("bench", circuit, "--against", dense, *QUICK, "--min-speedup", 1e6)
    assert code == 5
    assert "and at least 1000000.00 is required (asked for)" in err and err.count("\n") == 2
    assert "circuit.onnx against dense.onnx" in out
    code, out, err = run.all("bench", circuit, "--against", dense, *QUICK, "--min-speedup", 1e6, "--json")
    assert (code, len(json.loads(out)["failures"])) == (5, 1)
    run.succeeds("bench", circuit, "--against", dense, *QUICK, "--min-speedup", 1e-6)
    assert run.all("bench", circuit, "--against", circuit, *QUICK, "--max-regression", "900%")[0] == 0


def test_a_baseline_is_written_when_asked_and_held_against(pair: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    circuit, dense = pair
    file = tmp_path / "baseline.json"
    arguments = ("--against", dense, "--baseline", file)
    run.fails(3, "no baseline .*; write a new one with --update-baseline", "bench", circuit, *arguments)
    assert not file.exists()
    assert f"wrote {file}" in run.succeeds("bench", circuit, *arguments, *QUICK, "--update-baseline")
    before = file.read_text()
    assert Baseline.load(file).batches[0].batch == 2
    slack = ("--max-regression", "900%", "--seconds", 0.1)
    assert json.loads(run.succeeds("bench", circuit, *arguments, *slack, "--json"))["threads"] == 1
    assert file.read_text() == before
    slow = tmp_path / "slow.onnx"
    plant_mlp(circuit, slow, 500)
    code, _, err = run.all("bench", slow, "--baseline", file, "--gate", "proxies")
    assert code == 5 and "slow.onnx: it has" in err and "FLOPs" in err
    assert run.all("bench", slow, *arguments, "--gate", "time", *slack)[0] == 0
    alone = run.succeeds("bench", circuit, "--baseline", file, "--gate", "proxies")
    assert "counted, not timed" in alone  # the reference is not even looked for
    missed = run.all("bench", circuit, *arguments, *QUICK, "--update-baseline", "--min-speedup", 1e6)
    assert missed[0] == 5
    assert file.read_text() == before  # what misses a bar becomes no baseline
    assert {path.name for path in tmp_path.iterdir()} == {"circuit.onnx", "dense.onnx", "slow.onnx", "baseline.json"}


def test_what_stands_there_is_not_overwritten(pair: tuple[Path, Path], tmp_path: Path, run: Run,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(run_module, "run_bench", lambda *_, **__: pytest.fail("measured first"))
    (tmp_path / "package.json").write_text("{}")
    arguments = ("bench", pair[0], "--against", pair[1], "--update-baseline", "--baseline")
    run.fails(3, "it is not overwritten", *arguments, tmp_path / "package.json")
    run.fails(3, "cannot write a baseline to", *arguments, tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ('{"a": 1}', "is no latency baseline"), ('{"schema": 9}', "has schema 9, .*; upgrade")],
)
def test_a_baseline_that_cannot_be_read_ends_with_3(
    text: str, message: str, pair: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "b.json").write_text(text)
    run.fails(3, message, "bench", pair[0], "--against", pair[1], "--baseline", tmp_path / "b.json")


def test_files_that_cannot_be_measured_end_with_3(
    pair: tuple[Path, Path], exported: Path, tmp_path: Path, run: Run
) -> None:
    circuit, dense = pair
    (tmp_path / "text.onnx").write_text("text")
    run.fails(3, "no file", "bench", tmp_path / "no.onnx", "--against", dense)
    run.fails(3, "no file", "bench", circuit, "--against", tmp_path / "no.onnx")
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "text.onnx").write_text("text")  # what a folder is called says nothing
    run.fails(
        3, r"text\.onnx is not a readable ONNX file", "bench", tmp_path / "external" / "text.onnx", "--against", dense
    )
    silent = onnx.load(dense)
    silent.graph.output[0].name = silent.graph.node[-1].output[0] = "scores"
    onnx.save(silent, tmp_path / "silent.onnx")
    run.fails(3, "silent.onnx gives no logits", "bench", circuit, "--against", tmp_path / "silent.onnx")
    run.fails(3, r"text\.onnx is not a readable ONNX file", "bench", tmp_path / "text.onnx", "--against", dense)
    run.fails(3, "is not a readable ONNX file", "bench", tmp_path / "text.onnx")
    run.fails(3, "does not say which circuit it is", "bench", circuit)
    run.fails(3, "prompts of 13 tokens do not fit", "bench", circuit, "--against", dense, "--length", 13)
    other = tmp_path / "other.onnx"
    export_onnx(make_model("gpt2", n_layers=1, positions=4).dense, other)
    run.succeeds("bench", circuit, "--against", other, *QUICK)  # as many tokens as both take
    model = onnx.load(circuit)
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    onnx.save(model, other)
    run.fails(3, "takes tokens; it must be a language model that takes input_ids", "bench", circuit, "--against", other)


def test_a_dense_model_that_has_changed_is_refused(
    exported: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    run.fails(3, "are not those the circuit came from", "bench", exported / "m.onnx", "--model",
              make_checkpoint(n_layer=1))  # fmt: skip
    moved = shutil.copytree(make_checkpoint(), tmp_path / "moved")
    run.succeeds("bench", exported / "m.onnx", "--model", moved, *QUICK)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_provider_that_is_missing_ends_with_6(pair: tuple[Path, Path], run: Run) -> None:
    run.fails(6, "has no CUDAExecutionProvider", "bench", pair[0], "--against", pair[1], "--provider", "cuda")


@pytest.mark.gpu
def test_cuda_is_measured_and_answers_the_same(pair: tuple[Path, Path], run: Run) -> None:
    found = json.loads(
        run.succeeds("bench", pair[0], "--against", pair[1], "--provider", "cuda", "--batch", 2, "--json")
    )
    assert found["provider"] == "cuda" and found["batches"][0]["speedup"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-regression", "10"), "'10' is no share; write it like 10% or 0.1"),
        (("--max-regression", "much"), "'much' is no share"),
        (("--min-speedup", "0"), "min_speedup is 0.0; it must be a number above 0"),
        (("--min-speedup", "fast"), "should be a valid number"),
        (("--batch", "0"), "batch is 0; it must be from 1 to 65,536"),
        (("--update-baseline",), "give --baseline too"),
        (("--gate", "proxies"), "compares with a baseline; give --baseline"),
        (("--gate", "time", "--baseline", "b.json", "--update-baseline"), "leave --gate out"),
        (("--gate", "proxies", "--baseline", "b.json", "--min-speedup", "2"), "leave it or --gate proxies out"),
        (("--against", "a.onnx", "--model", "m"), "give one of them"),
        (("--provider", "tpu"), "'tpu' is not one of"),
        (("--gate", "none"), "'none' is not one of"),
    ],
)
def test_usage_errors_end_with_2(arguments: tuple[str, ...], message: str, run: Run) -> None:
    run.fails(2, message, "bench", "model.onnx", *arguments)
