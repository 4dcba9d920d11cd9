"""A job for a bundle with targets: the further ONNX files that these want, their gates, and what is refused when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_rehearsal import folder, forbid_search, make_job  # noqa: F401  # a fixture, and two functions

from exporter.errors import ExactnessError, InputError, UsageError
from exporter.graph.options import GraphOptions
from exporter.job import gate, timing
from exporter.job.command import write_command
from exporter.job.run import check_job, run_job
from exporter.outputs.bundle import is_bundle
from exporter.outputs.manifest import Manifest, hash_file
from exporter.runtime.prompting import open_decoder
from exporter.runtime.session import name_form
from exporter.verify.figures import Served

GRAPHS = ["onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"]
TARGETS = ("transformers-js",)


@pytest.fixture(autouse=True, scope="module")
def _briefly() -> Iterator[None]:
    batches, timing.LATENCY_BATCHES = timing.LATENCY_BATCHES, (1,)
    yield
    timing.LATENCY_BATCHES = batches


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models answer otherwise in int8; whether the gate is asked is tested here, not what it says."""
    monkeypatch.setattr(gate, "require_precision", lambda served, options: None)


@pytest.mark.parametrize("outputs", ["bundle", "both"])
def test_the_files_that_targets_want_are_the_bundles(outputs: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811 (the fixture)
    circuit = folder / "global-left.json"
    job = make_job(
        folder, tmp_path, outputs=outputs, circuit=circuit, targets=TARGETS, external_data=outputs == "bundle"
    )
    assert "--for transformers-js" in write_command(job)
    for _ in range(2):  # the second replaces the first
        run_job(job)
        bundle = Manifest.load(tmp_path / "b/model.json")
        assert sorted(bundle.graphs) == sorted(GRAPHS) and bundle.targets == list(TARGETS)
        assert bundle.graphs["onnx/model.onnx"].served.largest_difference < 1e-3
        assert bundle.graphs["onnx/model_quantized.onnx"].scales == "token"
        assert set(GRAPHS) < set(bundle.files)
        assert all(hash_file(tmp_path / "b" / name) == info for name, info in bundle.files.items())
        assert is_bundle(tmp_path / "b")
    assert len(open_decoder(tmp_path / "b").complete("w1 w2 w3 w4 w5", max_new_tokens=1).generation.token_ids) == 1
    if outputs == "both":
        assert {path.name for path in tmp_path.iterdir()} == {"b", "m.onnx", "m.json"}
        assert Manifest.load(tmp_path / "m.json").graphs == {}


def test_a_file_that_fails_its_gate_is_left_out_with_a_note(
    folder: Path,  # noqa: F811 (the fixture)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(served: Served, options: GraphOptions) -> None:
        if options.precision == "int8":
            raise ExactnessError("in int8 it is another model; no file was left: take fp32")

    monkeypatch.setattr(gate, "require_precision", refuse)
    circuit = folder / "global-left.json"
    manifest = run_job(make_job(folder, tmp_path, outputs="bundle", circuit=circuit, targets=TARGETS))
    assert manifest is not None
    assert "onnx/model_quantized.onnx is left out: in int8 it is another model" in manifest.notes
    assert sorted(manifest.graphs) == ["onnx/model.onnx", "onnx/model_fp16.onnx"]
    assert "model_quantized" not in (tmp_path / "b/index.html").read_text()
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["transformers.js_config"]["dtype"] == "fp32"
    assert "is left out: in int8 it is another model" in (tmp_path / "b/README.md").read_text().replace("\\", "")


def test_what_a_target_refuses_is_refused_before_a_search(
    folder: Path,  # noqa: F811 (the fixture)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forbid_search(monkeypatch)
    job = make_job(folder, tmp_path, outputs="bundle", logits="answers", targets=TARGETS, shape="choices", alpha=0.05)
    for act in (check_job, run_job):
        with pytest.raises(InputError, match=r"^--for transformers-js picks tokens by their place"):
            act(job)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("align", "form"), [("left", "past"), ("right", "plain")])
def test_what_is_for_optimum_keeps_a_past_where_it_can(align: str, form: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811 (the fixture)
    """Optimum generates with a past unless it is told otherwise; means from the last token on do not fit one."""
    job = make_job(folder, tmp_path, outputs="bundle", circuit=folder / f"position-{align}.json", targets=("optimum",))
    manifest = run_job(job)
    assert manifest is not None and name_form(manifest.onnx.inputs) == form
    assert ("position_ids" in manifest.onnx.inputs) == (form == "past")
    argument = "" if form == "past" else ", use_cache=False"
    assert f"from_pretrained(folder{argument})" in (tmp_path / "b/README.md").read_text()


def test_names_are_checked(folder: Path, tmp_path: Path) -> None:  # noqa: F811 (the fixture)
    with pytest.raises(UsageError, match=r"^unknown target 'tfjs'; choose from onnxruntime, optimum, genai, "):
        make_job(folder, tmp_path, outputs="bundle", targets=("optimum", "tfjs"))
    with pytest.raises(UsageError, match=r"^--for says what a bundle is for; give --bundle"):
        make_job(folder, tmp_path, targets=("optimum",))
    assert make_job(folder, tmp_path, outputs="bundle", targets=["genai", "optimum", "genai"]).targets == (
        "optimum",
        "genai",
    )
