"""The command line as its user meets it: every bad input ends in one line that says what to do, and leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file

from exporter.loading.load import bundled_path

SMALL = ("--patching-prompts", "20", "--selection-prompts", "20", "--test-prompts", "30")


def spoil_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_nan(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.mlp.c_fc.weight"][0, 0] = value

    return lambda folder: spoil_weights(folder, change)


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def set_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def drop_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1\n"

# What is wrong with a model folder, and a word of what is said about it.
BAD_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "JSON"),
    "another architecture": (set_config(model_type="bert", architectures=["BertModel"]), "gpt2"),
    "cross-attention": (set_config(add_cross_attention=True), "cross-attention"),
    "unknown activation": (set_config(activation_function="tanh"), "unknown activation 'tanh'"),
    "truncated": (truncate, "truncated|incomplete|damaged"),
    "LFS pointer": (lambda f: (f / "model.safetensors").write_text(LFS_POINTER), "git lfs pull|Git-LFS|Git LFS"),
    "NaN": (set_nan(float("nan")), r"NaN.*transformer\.h\.0\.mlp\.c_fc\.weight|c_fc\.weight.*NaN"),
    "Inf": (set_nan(float("inf")), r"c_fc\.weight"),
    "missing tensor": (lambda f: spoil_weights(f, lambda t: t.pop("transformer.h.1.ln_1.bias")), r"h\.1\.ln_1\.bias"),
    "pickle only": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "no tokenizer": (drop_tokenizer, "tokenizer"),
    "too few positions": ("few positions", "prompts have 11 tokens, the model takes 8"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_refused(name: str, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    spoil, message = BAD_MODELS[name]
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint(n_positions=8) if name == "too few positions" else make_checkpoint(), folder)
    if callable(spoil):
        spoil(folder)
    out = tmp_path / "out"
    out.mkdir()
    run.fails(3, message, "--task", "acronym", "--model", folder, "--out", out / "m.onnx")
    assert not list(out.iterdir())


HAND_MADE = {"heads": [[0, 1]], "mlps": [1]}

# Arguments after `--task acronym --model SMALL --out OUT/m.onnx`, which they override; the exit code; what is said.
BAD_ARGUMENTS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown task": (
        ("--task", "foo"),
        2,
        "unknown task 'foo'; choose from acronym, greater-than, ioi, or give a .jsonl or .csv",
    ),
    "unknown option": (("--aplha", "1"), 2, "No such option: --aplha"),
    "alpha zero": (("--alpha", "0"), 2, "--alpha is 0.0; give a threshold above 0"),
    "alpha negative": (("--alpha", "-1"), 2, "give a threshold above 0"),
    "alpha nan": (("--alpha", "nan"), 2, "give a threshold above 0"),
    "alpha no number": (("--alpha", "x"), 2, "'--alpha': Input should be a valid number"),
    "unknown ablation": (("--ablation", "median"), 2, "'median' is not one of 'mean', 'zero'"),
    "unknown mean": (("--mean", "some"), 2, "'some' is not one of 'position', 'global'"),
    "no prompts": (("--test-prompts", "0"), 2, "'--test-prompts': Input should be greater than or equal to 1"),
    "too many prompts": (("--test-prompts", "99999999"), 3, "distinct prompts of this kind.*ask for smaller sets"),
    "a parameter of another task": (("--template", "paper"), 2, "task 'acronym' has no parameter 'template'"),
    "unknown number of letters": (("--letters", "2"), 2, "letters is 2 for the task 'acronym'; choose from 1, 3"),
    "unknown alignment": (("--align", "centre"), 2, "'centre' is not one of 'left', 'right'"),
    "circuit and align": (("--circuit", "HAND", "--align", "left"), 2, "--align is for the search"),
    "unknown template": (
        ("--task", "ioi", "--template", "x"),
        2,
        "template is 'x' for the task 'ioi'; choose from all, paper",
    ),
    "no .onnx": (("--out", "OUT/model.bin"), 2, "give a name that ends in .onnx"),
    "no such folder": (("--out", "OUT/none/m.onnx"), 3, "none"),
    "no such model": (("--model", "./none"), 3, "no folder or file './none'"),
    "a GGUF file that is none": (("--model", "OUT/none.gguf"), 3, "no folder or file"),
    "unknown dtype": (("--dtype", "int8"), 2, "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
    "a model that is a file": (("--model", __file__), 3, "is a file"),
    "hub out of reach": (("--model", "some-org/some-model"), 3, "some-org/some-model"),
    "revision of a folder": (("--revision", "main"), 3, "revision 'main' is for a hub name"),
    "no circuit file": (("--circuit", "OUT/none.json"), 3, "cannot read the circuit"),
    "circuit and alpha": (("--circuit", "HAND", "--alpha", "1"), 2, "--alpha is for the search"),
    "circuit and no-mlps": (("--circuit", "HAND", "--no-mlps"), 2, "--no-mlps is for the search"),
    "circuit and dtype": (("--circuit", "HAND", "--dtype", "float16"), 2, "--dtype is for the search"),
    "circuit of another model": (("--circuit", "LARGE"), 3, "but the model has layers 0..1"),
    "circuit that is none": (("--circuit", "BROKEN"), 3, "is not JSON"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name: str, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    arguments, code, message = BAD_ARGUMENTS[name]
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "hand.json").write_text(json.dumps(HAND_MADE))
    (tmp_path / "large.json").write_text(json.dumps(HAND_MADE | {"mlps": [9]}))
    (tmp_path / "broken.json").write_text("{")
    files = {"HAND": tmp_path / "hand.json", "LARGE": tmp_path / "large.json", "BROKEN": tmp_path / "broken.json"}
    given = [str(files.get(argument, argument)).replace("OUT", str(out)) for argument in arguments]
    run.fails(code, message, "--task", "acronym", "--model", make_checkpoint(), "--out", out / "m.onnx", *given)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--task is missing"),
        (("--task", "acronym"), "--out or --bundle is missing"),
        (("--task", "acronym", "tasks"), "do not go with the command 'tasks'"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_an_incomplete_command_says_what_to_type(arguments: tuple[str, ...], message: str, run: Run) -> None:
    run.fails(2, message, *arguments)


def test_an_existing_output_is_kept_without_force(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    run.fails(3, "--force", "--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.onnx", None, "none.onnx"),
        ("empty.onnx", b"", "empty.onnx"),
        ("garbage.onnx", b"\x00garbage", "garbage.onnx"),
    ],
)
def test_a_file_that_is_no_export_is_refused(
    command: str, name: str, content: bytes | None, message: str, run: Run, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run.fails(3, message, command, tmp_path / name)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 7}', "\x00"])
def test_inspect_refuses_what_is_no_manifest(content: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(content)
    run.fails(3, "m.json", "inspect", tmp_path / "m.json")


def test_without_onnxruntime_the_main_job_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    run.fails(6, r"export-circuit\[cpu\]", "--task", "acronym", "--model", "bundled", "--out", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_cannot_express_the_task_is_refused(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = []  # nothing but bytes is left
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    out = tmp_path / "m.onnx"
    run.fails(3, "tokenizer", "--task", "acronym", "--model", folder, "--out", out)
    run.fails(3, "tokenizer", "--task", "ioi", "--model", folder, "--out", out)
    run.fails(3, "tokenizer", "--task", "greater-than", "--model", folder, "--out", out)


def test_tasks_lists_each_with_an_example(run: Run) -> None:
    rows = json.loads(run.succeeds("tasks", "--json", "--model", bundled_path()))
    named = [(row["name"], row["parameters"]) for row in rows if row["path"] is None]
    assert named == [("acronym", {}), ("acronym", {"letters": 3}), ("greater-than", {}), ("ioi", {}),
                     ("ioi", {"template": "paper"})]  # fmt: skip
    assert all(row["prompt"] and row["answer"] and row["description"] for row in rows)
    table = run.succeeds("tasks", "--model", bundled_path())
    assert all(row["name"] in table for row in rows)
    paths = [row["path"] for row in rows if row["path"] is not None]
    assert len(paths) == 2 and all(path in table and Path(path).is_file() for path in paths)


@pytest.mark.parametrize("arguments", [("--mean", "global"), ("--ablation", "zero")])
def test_align_is_for_means_by_position(arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    given = ("--task", "acronym", "--out", tmp_path / "m.onnx", "--align", "right", *arguments)
    run.fails(2, "--align is for means by position", *given)


def test_help_has_an_example_for_each_command(run: Run) -> None:
    data = (("check-data",), ("make-data",))
    for command in ((), ("tasks",), ("inspect",), ("verify",), ("run",), ("doctor",), *data):
        assert "Example" in run.succeeds(*command, "--help")


def test_help_shows_the_ten_options_of_every_day_first_and_the_others_in_panels(run: Run) -> None:
    shown = run.succeeds("--help")
    panels = re.split(r"^╭─ ", shown, flags=re.MULTILINE)[1:]
    titles = [panel[: panel.index(" ─")] for panel in panels]
    assert titles == ["Options", "Task and model", "Circuit", "Exported file", "Running", "Commands"]
    first = re.findall(r"^│ --([a-z-]+)", panels[0], flags=re.MULTILINE)
    assert " ".join(first) == "task model out bundle preset min-accuracy precision dry-run force json help"


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    arguments = ("--task", "acronym", "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", *SMALL, "--dry-run")
    plan = json.loads(run.succeeds(*arguments, "--json"))
    assert plan["candidates"] == 6
    assert plan["prompts"]["test"] == 30
    assert plan["writes"] == [str(tmp_path / "m.onnx"), str(tmp_path / "m.json")]
    assert "nothing was written" in run.succeeds(*arguments)
    assert not (tmp_path / "m.onnx").exists()


def test_doctor_speaks_json(run: Run) -> None:
    checks = json.loads(run.succeeds("doctor", "--json"))
    assert {"name", "status", "detail", "remedy"} <= checks[0].keys()


def test_a_gradual_search_takes_more_prompts_by_default(
    run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    lines = [
        {"prompt": f"Number {i} is", "answer": " odd" if i % 2 else " even", "split": split}
        for split, numbers in (("patching", range(300)), ("selection", range(300, 320)), ("test", range(320, 340)))
        for i in numbers
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = make_checkpoint()
    for task, options, n in (
        ("acronym", (), 3000),
        (tmp_path / "t.jsonl", ("--max-kl", "1"), 300),
        (tmp_path / "t.jsonl", (), 300),
        ("acronym", ("--preset", "paper"), 250),
        (tmp_path / "t.jsonl", ("--alpha", "1"), 300),
    ):
        job = ("--task", task, "--model", model, "--dry-run", "--json", "--force", "--out", tmp_path / "m.onnx")
        assert json.loads(run.succeeds(*job, *options))["prompts"]["patching"] == n
