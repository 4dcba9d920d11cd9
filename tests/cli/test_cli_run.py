"""`export-circuit run`, `--bundle` and `--with-past` as their user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import decode, make_bundle, make_dense, run_script, to_text
from conftest import Run
from exports import corrupt
from gguf_files import make_gpt2, write_gguf
from waits import HANG

from exporter.circuit import Ablation, Circuit
from exporter.errors import InputError
from exporter.job import build
from exporter.job import run as pipeline
from exporter.loading.load import bundled_path, load_model
from exporter.network.model import CircuitModel
from exporter.outputs import bundle as outputs
from exporter.outputs.manifest import Manifest, hash_file
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.prompting import _read_stop_ids, _take_backend
from exporter.tasks import SplitSizes, load_task

SMALL = ("--patching-prompts", "20", "--selection-prompts", "1", "--test-prompts", "20")
CIRCUIT = {"heads": [[0, 1], [1, 0], [1, 1]], "mlps": [1], "mean": "global"}
PROMPT = "The Chief Executive Officer (C"
IDS = [464, 5953, 10390, 10391, 357, 34]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A folder with out.onnx and the bundle beside it, made by one command; nobody changes it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "c.json").write_text(json.dumps(CIRCUIT))
    Run().succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--circuit", folder / "c.json", *SMALL, "--with-past",
        "--out", folder / "out.onnx", "--bundle", folder / "bundle",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def rewritten(make_checkpoint: Callable[..., Path]) -> CircuitModel:
    """The same circuit by the library."""
    model = load_model(make_checkpoint())
    data = load_task("acronym", model.tokenizer, sizes=SplitSizes(patching=20, selection=1, test=20))
    return rewrite_model(model, Circuit.from_json(CIRCUIT), data.patching)


def test_both_outputs_are_there_and_whole(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"c.json", "out.onnx", "out.json", "bundle"}
    manifest = Manifest.load(exported / "bundle" / "model.json")
    assert set(manifest.files) == {path.name for path in (exported / "bundle").iterdir()} - {"model.json"}
    assert all(hash_file(exported / "bundle" / name) == info for name, info in manifest.files.items())
    beside = Manifest.load(exported / "out.json")
    assert beside.files == {"out.onnx": hash_file(exported / "out.onnx")}
    assert beside.files["out.onnx"] == manifest.files["model.onnx"]
    assert beside.model_copy(update={"files": {}}) == manifest.model_copy(update={"files": {}})
    assert [shape[1] for name, shape in manifest.onnx.inputs.items() if name.endswith(".key")] == [1, 2]


def test_run_says_what_the_rewritten_model_says(exported: Path, rewritten: CircuitModel, run: Run) -> None:
    expected = decode(rewritten, IDS, 20)
    texts = []
    for path in (exported / "bundle", exported / "bundle" / "model.onnx", exported / "out.onnx"):
        found = json.loads(run.succeeds("run", path, PROMPT, "--json"))
        assert (found["prompt_ids"], found["token_ids"], found["stopped"]) == (IDS, expected, "max_new_tokens")
        assert len(found["seconds"]) == 20
        texts.append(run.succeeds("run", path, PROMPT))
        assert texts[-1] == found["text"] + "\n"
    assert len(set(texts)) == 1
    assert run_script(exported / "bundle", PROMPT).stdout == PROMPT + texts[0]
    shorter = json.loads(run.succeeds("run", exported / "bundle", PROMPT, "--json", "--max-new-tokens", 3))
    assert shorter["token_ids"] == expected[:3]


def test_run_needs_neither_torch_nor_transformers(exported: Path) -> None:
    script = """
        import sys
        sys.modules.update(torch=None, transformers=None)
        from exporter.__main__ import run_command
        sys.exit(run_command(sys.argv[1:]))
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines()), "run", str(exported / "bundle"),
         PROMPT],
        capture_output=True, text=True, timeout=HANG, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parents[2])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_verify_and_inspect_read_a_model_with_past(exported: Path, run: Run) -> None:
    assert "is exact on 20 prompts" in run.succeeds("verify", exported / "bundle" / "model.onnx")
    assert "past_key_values.1.value" in run.succeeds("inspect", exported / "bundle" / "model.onnx")


def test_run_ends_where_the_model_ends_and_refuses_what_does_not_fit(tmp_path: Path, run: Run) -> None:
    free = make_bundle(tmp_path / "free", form="masked").folder
    found = json.loads(run.succeeds("run", free, to_text(range(1, 23)), "--json"))
    assert len(found["token_ids"]) <= 3
    run.fails(3, "has 25 tokens, and this model takes at most 24; shorten it", "run", free, to_text(range(25)))
    run.fails(3, "the prompt has no tokens", "run", free, "")
    pinned = make_bundle(tmp_path / "pinned", form="plain", ablation=Ablation()).folder
    found = json.loads(run.succeeds("run", pinned, to_text(range(1, 7)), "--json"))
    assert (len(found["token_ids"]), found["stopped"]) == (1, "model length")
    run.fails(3, "has 2 tokens, and this model takes exactly 6", "run", pinned, "w1 w2")


def test_run_stops_at_the_end_of_text(tmp_path: Path, run: Run) -> None:
    model = make_dense()
    free = decode(make_bundle(tmp_path / "free", model=model).rewritten, [3, 1], 4)
    model.hf.generation_config.eos_token_id = free[1]
    folder = make_bundle(tmp_path / "b", model=model).folder
    found = json.loads(run.succeeds("run", folder, "w3 w1", "--json"))
    assert (found["token_ids"], found["stopped"]) == (free[: free.index(free[1]) + 1], "stop token")


def test_run_says_what_is_missing(exported: Path, tmp_path: Path, run: Run) -> None:
    run.fails(3, "give a bundle folder or a model.onnx", "run", tmp_path, "a")
    run.fails(3, "give a bundle folder or a model.onnx", "run", tmp_path / "no.onnx", "a")
    (tmp_path / "other.onnx").write_bytes(b"nonsense")
    run.fails(3, "is not a readable ONNX file", "run", tmp_path / "other.onnx", "a")
    lost = make_bundle(tmp_path / "lost").folder / "model.onnx"  # of a model called tiny, which is nowhere
    shutil.copy(lost, tmp_path / "moved.onnx")
    run.fails(
        3, "the tokenizer of tiny is not on this machine; export with --bundle", "run", tmp_path / "moved.onnx", "a"
    )
    shutil.copytree(exported / "bundle", tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{")
    run.fails(3, r"tokenizer\.json cannot be read", "run", tmp_path / "b", "a")


def test_run_reads_an_older_tokenizer_of_the_dense_model(exported: Path, tmp_path: Path, run: Run) -> None:
    """vocab.json and merges.txt, as GPT-2 was first published."""
    before = json.loads(run.succeeds("run", exported / "out.onnx", PROMPT, "--json"))["prompt_ids"]
    data = json.loads((bundled_path() / "tokenizer.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in data["model"]["merges"]]
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (old / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 50256}))
    (old / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert _take_backend(old).encode(PROMPT).ids == before
    assert _read_stop_ids(old) == [50256]


def test_run_reads_the_tokenizer_of_a_gguf_file(tmp_path: Path, run: Run) -> None:
    gguf = write_gguf(tmp_path / "m.gguf", make_gpt2(), settings={"tokenizer.ggml.eos_token_id": 31})
    model = load_model(gguf)
    (tmp_path / "c.json").write_text(json.dumps(CIRCUIT | {"ablation": "zero", "mean": "global"}))
    lines = [{"prompt": f"{a}ab{b}", "answer": b} for a in "cdefghijk" for b in "lmnopqrst"]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("--task", tmp_path / "t.jsonl", "--model", gguf, "--circuit", tmp_path / "c.json", "--force")
    run.succeeds(*arguments, "--out", tmp_path / "m.onnx")
    found = json.loads(run.succeeds("run", tmp_path / "m.onnx", "cab<26>", "--json"))
    assert model.tokenizer is not None
    assert found["prompt_ids"] == model.tokenizer("cab<26>")["input_ids"]
    assert _read_stop_ids(gguf) == [31]


class TestWriting:
    def arguments(self, folder: Path, make_checkpoint: Callable[..., Path], **circuit: object) -> tuple[object, ...]:
        (folder / "c.json").write_text(json.dumps(CIRCUIT | circuit))
        return ("--task", "acronym", "--model", make_checkpoint(), "--circuit", folder / "c.json", *SMALL)

    def test_a_bundle_alone_is_replaced_with_force_only(
        self, tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run
    ) -> None:
        arguments = (*self.arguments(tmp_path, make_checkpoint), "--bundle", tmp_path / "b")
        out = run.succeeds(*arguments, "--json")
        assert out == (tmp_path / "b" / "model.json").read_text()
        assert Manifest.from_json(out).onnx.inputs == {"input_ids": ["batch_size", "sequence_length"]}
        run.fails(3, "b exists; give --force to replace it", *arguments)
        assert f"wrote {tmp_path / 'b'}" in run.succeeds(*arguments, "--force", "--with-past")
        assert len(Manifest.load(tmp_path / "b" / "model.json").onnx.inputs) == 6
        (tmp_path / "b" / "mine.txt").write_text("mine")
        run.fails(3, "holds other files too; choose another --bundle", *arguments, "--force")
        assert {path.name for path in tmp_path.iterdir()} == {"b", "c.json"}

    def test_nothing_is_left_when_the_gate_fails_or_a_file_cannot_be_made(
        self, tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = (
            *self.arguments(tmp_path, make_checkpoint),
            "--bundle",
            tmp_path / "b",
            "--out",
            tmp_path / "m.onnx",
        )

        def fail(*_: object, **__: object) -> str:
            raise InputError("no card")

        with monkeypatch.context() as patch:
            patch.setattr(outputs, "render_card", fail)
            run.fails(3, "no card", *arguments)
        assert {path.name for path in tmp_path.iterdir()} == {"c.json"}
        export = build.export_onnx

        def export_corrupted(model: object, path: Path, *args: object, **options: object) -> object:
            description = export(model, path, *args, **options)
            corrupt(path, "W_E", 0.5)
            return description

        monkeypatch.setattr(build, "export_onnx", export_corrupted)
        run.fails(4, "rewritten vs onnx", *arguments)
        assert {path.name for path in tmp_path.iterdir()} == {"c.json"}

    def test_what_cannot_be_is_refused_before_any_work(
        self, tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run
    ) -> None:
        arguments = self.arguments(tmp_path, make_checkpoint, mean="position", align="right")
        run.fails(3, "use --align left, --mean global", *arguments, "--with-past", "--bundle", tmp_path / "b")
        run.fails(3, "no folder", *arguments, "--bundle", tmp_path / "no" / "b")
        run.fails(2, "--out or --bundle is missing", *arguments)
        run.fails(2, "--bundle do not go with the command", "--bundle", tmp_path / "b", "tasks")
        assert {path.name for path in tmp_path.iterdir()} == {"c.json"}

    def test_a_dry_run_names_both(self, tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run) -> None:
        arguments = (*self.arguments(tmp_path, make_checkpoint), "--bundle", tmp_path / "b", "--dry-run", "--json")
        assert json.loads(run.succeeds(*arguments))["writes"] == [str(tmp_path / "b")]
        assert json.loads(run.succeeds(*arguments, "--out", tmp_path / "m.onnx"))["writes"] == [
            str(tmp_path / name) for name in ("m.onnx", "m.json", "b")
        ]
        assert {path.name for path in tmp_path.iterdir()} == {"c.json"}
