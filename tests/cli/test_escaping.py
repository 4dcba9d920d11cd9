"""Text from outside is shown as it is: it moves no cursor, ends no table, and adds no line of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundles import make_bundle
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from manifests import DATA
from rich.color import ColorSystem
from tiers import thin

from exporter.cli import screen
from exporter.cli.display import render_plan, render_result
from exporter.cli.screen import Screen, Sheet, as_text
from exporter.escaping import escape_controls, escape_markdown, quote_code, quote_yaml, shorten
from exporter.evidence.latency import Latency
from exporter.graph.export import read_metadata
from exporter.graph.metadata import Origin
from exporter.outputs.card import render_card
from exporter.outputs.manifest import Manifest
from exporter.tasks.template import Template

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "[v2]o.onnx",
    "o[/x].onnx",
    "[bold]b[/bold]",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\x9b2J",
    "a\rb",
    "\u202egnp.exe",
    "a\nexport-circuit: error: forged",
    "bell\x07",
    "\u2028line",
    "half \udcff",
    "tag \U000e0041",
]
FORBIDDEN = [*map(chr, range(9)), *map(chr, range(11, 32)), *map(chr, range(127, 160)), "\u202e", "\u2028", "\u2066"]


def show(renderable: object, *, encoding: str = "utf-8", terminal: bool = False) -> str:
    """What a screen writes, read back in the same encoding."""
    raw = io.BytesIO()
    console = Screen()
    console.file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console.width = 200
    if terminal:
        console._color_system = ColorSystem.STANDARD
    console.print(renderable)
    console.file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_screen_shows_what_it_is_given_and_sends_nothing(text: str, encoding: str) -> None:
    sheet = Sheet(f"head {text}", "other", title=f"title {text}")
    sheet.add_row(text, "cell")
    sheet.add_row(as_text(text, style="dim"), "cell")
    for shown in (show(each, encoding=encoding) for each in (text, as_text(text), sheet)):
        assert not [c for c in FORBIDDEN if c in shown]
    visible = escape_controls(text)
    assert show(sheet, encoding=encoding).count(visible) == 4 and text.count("\n") <= 1


@given(text=st.text())
def test_escaping_is_done_once_and_leaves_nothing(text: str) -> None:
    shown = escape_controls(text)
    assert escape_controls(shown) == shown
    assert not [c for c in FORBIDDEN if c in shown] and "\n" not in shown
    assert text != text.encode("ascii", "ignore").decode() or not text.isprintable() or shown == text
    assert json.loads(quote_yaml(text)) == text and "\n" not in quote_yaml(text)
    assert "\n" not in escape_markdown(text) and "\n" not in quote_code(text)


def test_scripts_keep_their_letters() -> None:
    for text in ("naïve", "日本語", "नमस्ते", "می‌خواهم", "👩‍🚀", "a b", "x=[1]", "±½"):
        assert escape_controls(text) == text


def test_a_terminal_of_another_encoding_gets_other_signs() -> None:
    assert show("■ · … é 日", encoding="ascii").strip() == "# . ~ \\xe9 \\u65e5"
    assert show("■ é", encoding="latin-1").strip() == "# é"
    assert show("■ é").strip() == "■ é"


def test_style_is_still_there_on_a_terminal() -> None:
    shown = show(as_text("\x1b[2Jx", style="bold"), terminal=True)
    assert "\x1b[1m" in shown and "\\x1b[2Jx" in shown and "\x1b[2J" not in shown


def test_the_results_of_a_job_show_names_as_they_are() -> None:
    timed = Latency(1, 2, 0.2, 0.1, 2.0, (1.9, 2.1))
    manifest = Manifest.model_validate(DATA).model_copy(update={"latency": [timed]})
    for name in HOSTILE:
        task = manifest.task.model_copy(update={"name": name})
        model = manifest.model.model_copy(update={"name": f"m{name}"})
        shown = show(render_result(manifest.model_copy(update={"task": task, "model": model}), seconds=1))
        folded = "".join(line.strip() for line in shown.splitlines()[:4]).replace(" ", "")
        assert f"{escape_controls(name)}onm{escape_controls(name)}".replace(" ", "") in folded
        assert escape_controls(name) in show(render_plan({"example": name, "writes": [name], "model": {"name": name}}))


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a\\x1b[31m\\r\tb\n"), (False, "a\x1b[31m\r\tb\n")])
def test_generated_text_is_escaped_on_a_terminal_alone(
    is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = SimpleNamespace(text="")
    out.write = lambda text: setattr(out, "text", out.text + text)
    out.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdout", out)
    screen.print_text("a\x1b[31m\r\tb")
    monkeypatch.undo()
    assert out.text == shown


NAMES = ["[v2]m.onnx", "o[/x].onnx", "a\x1b[31mb.onnx", "new\nline.onnx", "é■.onnx", "\u202ex.onnx"]


@pytest.mark.parametrize("name", thin(NAMES, NAMES[-3:-1]))
def test_an_output_by_any_name(name: str, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    (tmp_path / "c.json").write_text('{"heads": [[0, 1]], "mlps": [1]}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    small = ("--patching-prompts", "8", "--selection-prompts", "8", "--test-prompts", "8")
    shown = run.succeeds(
        "--task", "acronym", "--model", make_checkpoint(), "--circuit", tmp_path / "c.json", "--out", tmp_path / name,
        *small,
    )  # fmt: skip
    assert (tmp_path / name).is_file()
    assert f"wrote {escape_controls(tmp_path / name)} and " in shown and "\x1b" not in shown
    assert escape_controls(tmp_path / name) in run.succeeds("verify", tmp_path / name)


def test_inspect_of_a_file_with_hostile_metadata(tmp_path: Path, run: Run) -> None:
    import onnx

    folder = make_bundle(tmp_path / "b").folder
    proto = onnx.load(folder / "model.onnx")
    origin = Origin.read(folder / "model.onnx")
    name = "".join(HOSTILE).replace("\udcff", "")
    hostile = replace(
        origin,
        task=origin.task.model_copy(update={"name": name}),
        model=origin.model.model_copy(update={"name": name, "family": name}),
    )
    for prop in proto.metadata_props:
        prop.value = hostile.to_metadata().get(prop.key, prop.value)
    onnx.save(proto, tmp_path / "h.onnx")
    shown = run.succeeds("inspect", tmp_path / "h.onnx")
    assert not [c for c in FORBIDDEN if c in shown] and "[bold]b[/bold]" in shown
    assert "\x1b" not in run.succeeds("inspect", tmp_path / "h.onnx", "--json")
    assert read_metadata(tmp_path / "h.onnx")
    for command in ("verify", "run", "bench"):
        code, out, err = run.all(command, tmp_path / "h.onnx", *(["x"] if command == "run" else []))
        assert code == 3 and err.count("\n") == 1 and not [c for c in FORBIDDEN if c in out + err]


@pytest.mark.parametrize("text", thin(HOSTILE, HOSTILE[:3]))
def test_error_lines_stay_one_line(text: str, run: Run, tmp_path: Path) -> None:
    if "\udcff" not in text:
        for command in (
            ("inspect", text),
            ("verify", text),
            ("run", text, "x"),
            ("--task", f"{text}.csv", "--out", "o.onnx"),
        ):
            code, out, err = run.all(*command)
            assert code in (2, 3) and out == "" and err.count("\n") == 1, err
            assert not [c for c in FORBIDDEN if c in err]


def test_check_data_and_make_data_show_lines_as_they_are(tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.csv").write_text("noun,answer\n[bold]x[/bold]\x1b[31m, a\n[/x]:smile:, b\n", encoding="utf-8")
    shown = run.succeeds(
        "make-data", "--template", "The {noun} is", "--fill", tmp_path / "t.csv", "--out", tmp_path / "[v2]d.jsonl"
    )
    assert "[v2]d.jsonl" in shown and "[bold]x[/bold]" in shown and "\x1b" not in shown
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "[/x]\x1b[31m", "[bold]": 1}) + "\n")
    _, out, err = run.all("check-data", tmp_path / "d.jsonl", "--model", "bundled")
    assert "[bold]" in out and "\x1b" not in out + err


@pytest.mark.parametrize(
    "text", [*HOSTILE, "`", "``code``", "|", "a|b", "# x", "---", "<script>", "![x](y)", "*", "\n\n---\n"]
)
def test_a_card_is_ended_by_no_name(text: str, tmp_path: Path) -> None:
    manifest = Manifest.model_validate(DATA)
    changes = {
        "task": manifest.task.model_copy(update={"name": f"t{text}", "parameters": {"x": text}}),
        "model": manifest.model.model_copy(update={"name": f"org/m{text}", "revision": text, "sha256": text}),
        "ood": {text: manifest.test},
        "versions": {"python": text},
        "notes": [text],
        "export": manifest.export.model_copy(
            update={"labels": [text, "b"], "template": Template(text, f"{text}a"), "in_fp32": [text]}
        ),
    }

    def render(manifest: Manifest, example: str) -> str:
        return render_card(manifest, max_length=4, example=example, framed=True)

    card, plain = render(manifest.model_copy(update=changes), text), render(manifest, "w1")
    front = card.split("---\n")[1]
    named = [line for line in front.splitlines() if line.startswith("base_model: ")]
    assert json.loads(named[0].removeprefix("base_model: ")) == f"org/m{text}"
    assert front.count("\n") == plain.split("---\n")[1].count("\n") + 1
    assert [line for line in card.splitlines() if line.startswith("#")][1:] == [
        line for line in plain.splitlines() if line.startswith("#")
    ][1:]
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {7}
    assert not [c for c in FORBIDDEN if c in card]


def test_code_is_fenced_by_more_backticks_than_it_holds() -> None:
    assert quote_code("x") == "`x`"
    assert quote_code("a`b") == "``a`b``"
    assert quote_code("``") == "``` `` ```"
    assert shorten("x" * 5000).count("x") == 1500 and shorten("short") == "short"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_real_command_on_a_terminal_of_another_encoding(encoding: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "é■", form="plain")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    for arguments in (
        ["--help"],
        ["inspect", str(tmp_path / "é■" / "model.onnx")],
        ["inspect", "é■日.onnx"],
        ["doctor"],
    ):
        command = [sys.executable, "-m", "exporter", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        text = (done.stdout + done.stderr).decode(encoding)
        assert done.returncode == (3 if "é■日.onnx" in arguments else done.returncode), text
        assert done.returncode in (0, 3, 6) and "Traceback" not in text and "Error:" not in text
