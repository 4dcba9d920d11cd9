"""Every command with every argument that nobody should give: a usage error or bad input, in one line or two."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Run
from onnx import TensorProto, helper
from tiers import thin
from typer.main import get_command

from exporter.cli.arguments import read_path
from exporter.cli.main import app
from exporter.graph.metadata import ANSWER_IDS_KEY, EXAMPLES_KEY, MAX_LENGTH_KEY, VOCAB_SIZE_KEY

SMALL = ("--patching-prompts", "8", "--selection-prompts", "8", "--test-prompts", "8")


def nest(depth: int) -> bytes:
    """An ONNX model whose graph holds a node that holds a graph, and so on: beyond what protobuf reads."""

    def wrap(tag: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([tag << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(depth):
        graph = wrap(1, wrap(5, wrap(6, graph)))  # graph.node.attribute.g
    return b"\x08\x0a" + wrap(7, graph)


def make_model(**metadata: str) -> bytes:
    """A small valid ONNX model, with metadata that says what it likes."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "pos"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "pos"])
    node = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)
    model = helper.make_model(
        helper.make_graph([node], "g", [ids], [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def say(**parts: Any) -> dict[str, str]:
    """Metadata of a file of ours, with some parts changed."""
    known = {
        "schema": 1,
        "task": {"name": "acronym", "parameters": {}, "sha256": ""},
        "model": {"name": "m", "revision": None, "sha256": "", "family": "gpt2", "n_layers": 1, "n_heads": 1},
        "circuit": {"heads": [], "mlps": []},
        "options": {},
    }
    return {f"export_circuit.{name}": json.dumps(value) for name, value in (known | parts).items()}


ONNX: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a model\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "zip": b"PK\x03\x04" + bytes(100),
    "gguf": b"GGUF\x03\x00\x00\x00" + bytes(100),
    "deep": nest(200),
    "deeper": nest(3000),
    "no graph": onnx.ModelProto(ir_version=10).SerializeToString(),
    "foreign": make_model(),
    "cut": make_model()[:-7],
    "schema": make_model(**say(schema=7)),
    "no JSON": make_model(**say() | {"export_circuit.task": "{"}),
    "deep JSON": make_model(**say() | {"export_circuit.circuit": "[" * 100_000}),
    "long number": make_model(**say() | {"export_circuit.circuit": "1" * 5000}),
    "task is a list": make_model(**say(task=[])),
    "circuit is text": make_model(**say(circuit="x")),
    "circuit twice": make_model(**say(circuit={"heads": [[0, 0], [0, 0]], "mlps": []})),
    "options are a list": make_model(**say(options=[1])),
    "options are unknown": make_model(**say(options={"form": "odd"})),
    "options of odd types": make_model(**say(options={"answer_ids": {"a": 1}, "vocabulary": 7, "length": "x"})),
    "no parameters": make_model(**say()),
    "no such model": make_model(**say(model={**json.loads(say()["export_circuit.model"]), "name": "no/where"})),
    "model without a name": make_model(**say(model={**json.loads(say()["export_circuit.model"]), "name": ""})),
    "model is a folder": make_model(**say(model={**json.loads(say()["export_circuit.model"]), "name": "/"})),
    "many layers": make_model(**say(model={**json.loads(say()["export_circuit.model"]), "n_layers": 10**12})),
    "fewer than no layers": make_model(**say(model={**json.loads(say()["export_circuit.model"]), "n_layers": -5})),
    "answers": make_model(**say(), **{ANSWER_IDS_KEY: "x"}),
    "answers of odd types": make_model(**say(), **{ANSWER_IDS_KEY: '{"a": [1e400]}'}),
    "lengths": make_model(**say(), **{MAX_LENGTH_KEY: "9" * 5000, VOCAB_SIZE_KEY: "-1"}),
    "examples": make_model(**say(), **{EXAMPLES_KEY: "[1, 2"}),
    "examples of odd types": make_model(**say(), **{EXAMPLES_KEY: '{"input_ids": "x"}'}),
}
JSON: dict[str, bytes] = {
    "empty.json": b"",
    "deep.json": b"[" * 200_000,
    "deeper.json": b'{"schema":' * 50_000,
    "number.json": b"1" * 5000,
    "text.json": b'"x"',
    "null.json": b"null",
    "bytes.json": b"\xff\xfe\x00",
    "surrogate.json": b'{"schema": 1, "circuit": {"heads": [["\\ud800", 1]], "mlps": []}}',
    "nan.json": b'{"heads": [[NaN, 0]], "mlps": []}',
    "huge.json": b'{"heads": [[1e400, 0]], "mlps": [123456789012345678901234567890]}',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """All of the files, a tiny model, a folder, links that end nowhere, and names that are hard to show."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in ONNX.items():
        (folder / f"{name}.onnx").write_bytes(content)
    for name, content in JSON.items():
        (folder / name).write_bytes(content)
    (folder / "tiny").symlink_to(make_checkpoint())
    (folder / "folder.onnx").mkdir()
    (folder / "dangling.onnx").symlink_to("nowhere")
    (folder / "loop.onnx").symlink_to("loop.onnx")
    (folder / "new\nline\x1b[31m.onnx").write_bytes(b"x")
    return folder


NAMES = [
    "", " ", ".", "..", "/", "./", "nowhere", "nowhere.onnx", "nowhere/m.onnx", "folder.onnx", "folder.onnx/m.onnx",
    "dangling.onnx", "loop.onnx", "loop.onnx/m.onnx", "new\nline\x1b[31m.onnx", "~", "~nobody/m.onnx", "/dev/null",
    "/proc/self/mem", "x" * 300 + ".onnx", "y/" * 3000 + "m.onnx", "nul\0.onnx", "\u202e.onnx", "-", "m.ONNX", "m.Onnx",
    "m.json", "\\", "%s", "{0}",
]  # fmt: skip
FEW_NAMES = [
    "",
    "..",
    "nowhere.onnx",
    "folder.onnx",
    "loop.onnx",
    "new\nline\x1b[31m.onnx",
    "/proc/self/mem",
    "nul\0.onnx",
]


def end(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object, codes: tuple[int, ...] = (2, 3)
) -> str:
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = run.all(*arguments)
    assert code in codes, (code, err)
    assert err.startswith("export-circuit: error: ") and err.count("\n") <= 2, err
    assert "Traceback" not in err and "run again with --debug" not in err and len(err) < 2000
    assert "\x1b" not in out + err
    assert sorted(path.name for path in folder.iterdir()) == before
    return err


@pytest.mark.parametrize("name", thin(NAMES, FEW_NAMES), ids=ascii)
def test_names_of_files_to_read(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ("bench", "foreign.onnx", "--against", "foreign.onnx", "--baseline")
    for command in (
        ("inspect", name),
        ("verify", name),
        ("run", name, "x"),
        ("bench", name),
        ("bench", "foreign.onnx", "--against", name),
        (*held, name),
        ("check-data", name, "--model", "tiny"),
        ("make-data", "--template", "{a}", "--fill", name, "--out", "o.jsonl"),
        ("verify", "foreign.onnx", "--task", name),
        ("verify", "foreign.onnx", "--model", name),
        ("--task", "acronym", "--model", "tiny", "--circuit", name, "--out", "o.onnx", *SMALL),
    ):
        end(run, folder, monkeypatch, *command)


@pytest.mark.parametrize("name", thin([*NAMES, "a/b"], FEW_NAMES), ids=ascii)
def test_names_of_tasks_and_models(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        ("--task", name, "--model", "tiny", "--out", "o.onnx", *SMALL),
        ("--task", "acronym", "--model", name, "--out", "o.onnx", *SMALL),
        ("tasks", "--model", name),
        ("check-data", "null.json", "--model", name),
        ("--task", "acronym", "--model", "tiny", "--revision", name, "--out", "o.onnx", *SMALL),
    ):
        end(run, folder, monkeypatch, *command)


GOOD = ("nowhere.onnx", "new\nline\x1b[31m.onnx", "\u202e.onnx")  # as names of what is to be written


@pytest.mark.parametrize("name", thin([name for name in NAMES if name not in GOOD], FEW_NAMES), ids=ascii)
def test_names_of_outputs(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ("--task", "acronym", "--model", "./nowhere", *SMALL)
    end(run, folder, monkeypatch, *job, "--out", name)
    end(run, folder, monkeypatch, *job, "--bundle", name)
    end(run, folder, monkeypatch, "make-data", "--template", "{a}", "--fill", "nowhere.csv", "--out", name)
    end(run, folder, monkeypatch, "bench", "foreign.onnx", "--update-baseline", "--baseline", name)


@pytest.mark.parametrize("name", ONNX)
def test_files_that_are_no_models_of_ours(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = "model" in name or "answers" in name or name in ("no parameters", "lengths")
    for command in (("verify",), ("run",), ("bench",)):
        end(run, folder, monkeypatch, *command, f"{name}.onnx", *(["x"] if command == ("run",) else []))
    if not readable and "layers" not in name and "examples" not in name:
        end(run, folder, monkeypatch, "inspect", f"{name}.onnx")
    else:
        monkeypatch.chdir(folder)
        code, out, err = run.all("inspect", f"{name}.onnx")
        assert code in (0, 3) and err.count("\n") == (code != 0) and len(out) < 10_000


@pytest.mark.parametrize("name", JSON)
def test_files_that_are_no_circuit_manifest_or_baseline(
    name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (
        ("inspect", name), ("--task", "acronym", "--model", "tiny", "--circuit", name, "--out", "o.onnx", *SMALL),
        ("bench", "foreign.onnx", "--against", "foreign.onnx", "--baseline", name),
        ("bench", "foreign.onnx", "--against", "foreign.onnx", "--baseline", name, "--update-baseline"),
    ):  # fmt: skip
        end(run, folder, monkeypatch, *command)


NUMBERS = ["nan", "inf", "-inf", "1e300", "-1", "0", "", "x", "1_0", "١", "1e999", "9" * 400, "0x10", " ", "-0.0"]


@pytest.mark.parametrize("value", thin(NUMBERS, ("nan", "1e300", "-1", "", "9" * 400)))
def test_numbers(value: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ("--task", "acronym", "--model", "./nowhere", "--out", "o.onnx")
    for option in ("--memory-limit", "--alpha", "--seed", "--patching-prompts", "--test-prompts", "--letters"):
        end(run, folder, monkeypatch, *job, option, value)
    for option in ("--batch", "--length", "--threads", "--min-speedup", "--max-regression", "--seconds"):
        end(run, folder, monkeypatch, "bench", "nowhere.onnx", option, value)
    end(run, folder, monkeypatch, "run", "nowhere.onnx", "x", "--max-new-tokens", value)


RANKS: list[tuple[dict[str, str], str]] = [
    ({"RANK": "x"}, "RANK is 'x'"),
    ({"RANK": "1"}, "RANK is '1'.*from 0 to 0"),
    ({"RANK": ""}, "RANK is ''"),
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
    ({"WORLD_SIZE": "-2", "RANK": "0"}, "WORLD_SIZE is '-2'"),
    ({"WORLD_SIZE": "9" * 400, "RANK": "0"}, "WORLD_SIZE is"),
    ({"WORLD_SIZE": "2.0", "RANK": "0"}, "WORLD_SIZE is '2.0'"),
    ({"WORLD_SIZE": "2"}, "RANK is not set, and WORLD_SIZE is 2"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
    ({"WORLD_SIZE": "2", "RANK": "nan"}, "RANK is 'nan'"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "http", "MASTER_ADDR": "localhost"}, "MASTER_PORT is 'http'"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "70000", "MASTER_ADDR": "localhost"}, "MASTER_PORT is '70000'"),
]


@pytest.mark.parametrize(("environment", "message"), RANKS, ids=str)
@pytest.mark.parametrize(
    "options", [pytest.param((), id="job"), pytest.param(("--dry-run",), id="dry run", marks=pytest.mark.slow)]
)
def test_what_torchrun_would_not_say(
    environment: dict[str, str], message: str, options: tuple[str, ...], run: Run, tmp_path: Path,
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = ("--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL)
    run.fails(2, message, *job, *options)
    assert not list(tmp_path.iterdir())


def test_one_process_may_be_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.search.ranks import read_place

    for environment in ({}, {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert read_place() == (0, 1)


def test_no_option_asks_whether_a_file_can_be_read() -> None:
    """Typer would of a plain Path, and call it a usage error."""
    group: Any = get_command(app)
    found = [parameter for command in (group, *group.commands.values()) for parameter in command.params]
    paths = {parameter.name for parameter in found if parameter.metavar == "PATH"}
    assert paths == {
        "out",
        "bundle",
        "circuit",
        "file",
        "task",
        "path",
        "against",
        "baseline",
        "fill",
        "plot",
        "folder",
    }
    functions = [group.callback, *(command.callback for command in group.commands.values())]
    for function in functions:
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if "Path" in str(parameter.annotation):
                assert parameter.annotation.__metadata__[0].parser is read_path, parameter


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user for a moment")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_bad_input(what: str, run: Run, tmp_path: Path) -> None:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    (tmp_path / "inside").mkdir()
    names = ("closed.onnx", "closed.json", "closed.csv", "closed.jsonl")
    for name in names:
        (tmp_path / "inside" / name).write_bytes(ONNX["no parameters"])
    onnx_file, json_file, csv, jsonl = (tmp_path / "inside" / name for name in names)
    commands: list[tuple[object, ...]] = [
        ("inspect", onnx_file),
        ("inspect", json_file),
        ("verify", onnx_file),
        ("run", onnx_file, "x"),
        ("run", tmp_path / "inside", "x"),
        ("bench", onnx_file, "--against", onnx_file),
        ("bench", onnx_file, "--against", onnx_file, "--baseline", json_file),
        ("make-data", "--template", "{a}", "--fill", csv, "--out", tmp_path / "o.jsonl"),
        ("make-data", "--template", "{a}", "--fill", csv, "--out", tmp_path / "inside" / "o.jsonl"),
        ("--task", "acronym", "--model", tmp_path / "inside", "--out", tmp_path / "o.onnx"),
        ("--task", "acronym", "--model", "bundled", "--circuit", json_file, "--out", tmp_path / "o.onnx", "--dry-run"),
        ("check-data", jsonl, "--model", tmp_path / "inside"),
    ]
    for command in commands:
        run.all(*command)  # imports what it needs
    for name in names:
        (tmp_path / "inside" / name).chmod(0 if what == "file" else 0o644)
    (tmp_path / "inside").chmod(0o755 if what == "file" else 0)
    for command in commands:
        os.seteuid(65534)
        try:
            code, out, err = run.all(*command)
        finally:
            os.seteuid(0)
        assert (code, out) == (3, "") and err.count("\n") == 1, (command, err)
