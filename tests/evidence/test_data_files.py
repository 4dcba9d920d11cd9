"""Data files as programs and people write them: what each fault is called, and that none ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from tiers import thin

from exporter.errors import InputError
from exporter.loading.load import LanguageModel
from exporter.tasks import DataFileError, is_file_task, lines, rebuild_task
from exporter.tasks.fill import fill_template
from exporter.tasks.records import read_records

HEAD = "prompt,answer\n"
ROWS = "".join(f"The number after {i} is, {i + 1}\n" for i in range(3))
LINE = '{"prompt": "The number after 3 is", "answer": " 4"}\n'

# A table, and what is said of it. None of it is about JSON.
BAD_TABLES: dict[str, tuple[str, str]] = {
    "quotes behind a space": (
        HEAD + 'The first, " 1"\n',
        "row 2: the quote in column 2 stands behind ' ' and opens no cell, so .* is read with its quotes; write "
        "the quote right behind the comma",
    ),
    "quotes behind a tab": (HEAD + 'The first,\t" 1"\n', r"row 2: the quote in column 2 stands behind '\\t'"),
    "quotes behind a no-break space": (HEAD + 'The first,\u00a0" 1"\n', r"the quote in column 2 stands behind '\\xa0'"),
    "quotes behind a space around a comma": (
        HEAD + 'The first, "1, 2"\n',
        "row 2: the quote in column 2 stands behind",
    ),
    "quotes behind a space in the header": ('prompt, "answer"\n' + ROWS, "row 1: the quote in column 2 stands behind"),
    "quotes behind a space in the first cell": (
        HEAD + ' "The first",1\n',
        "row 2: the quote in column 1 stands behind",
    ),
    "typographic quotes": (
        HEAD + "“One, two”, 3\n",
        r"row 2: 3 cells under 2 columns; .* \(\" opens a cell, “ does not\)",
    ),
    "single quotes": (HEAD + "'One, two', 3\n", r"row 2: 3 cells under 2 columns; .* \(\" opens a cell, ' does not\)"),
    "Excel's first line": (
        "sep=,\n" + HEAD + ROWS,
        "row 1: 'sep=,' is a note of Excel's to itself; take the line out$",
    ),
    "Excel's first line with semicolons": (
        "sep=;\n" + (HEAD + ROWS).replace(",", ";"),
        "row 1: 'sep=;' is .*; take the line out, and separate the cells with commas instead of ';'",
    ),
    "Excel's first line in quotes": ('"SEP=\t"\n' + HEAD + ROWS, r"row 1: .* is a note of Excel's .* instead of '\\t'"),
    "two commas at each row's end": (
        "prompt,answer,,\n" + ROWS.replace("\n", ",,\n"),
        "row 1: columns 3 and 4 have no name; name them, or take their commas out of every row",
    ),
    "a comma at each row's end": ("prompt,answer,\n" + ROWS, "row 1: column 3 has no name; name it, or take its comma"),
    "a column without a name in the middle": ("prompt, ,answer\n" + ROWS, "row 1: column 2 has no name"),
    "commas at one row's end": (
        HEAD + "The first, 1,,\n",
        "row 2: 4 cells under 2 columns, the last of them empty; take the commas at the row's end out",
    ),
    "rows of commas": (HEAD + ROWS + ",\n , \n", "row 5: a row without text in any cell; fill it, or take the row out"),
    "too few cells": (HEAD + "The first\n", "row 2: 1 cell under 2 columns; give each column a cell"),
    "too many cells": (
        HEAD + "Well, the first, 1\n",
        "row 2: 3 cells under 2 columns; put cells with a comma into quotes$",
    ),
    "semicolons": (
        "prompt;answer\nThe first; 1\n",
        "row 1: the columns 'prompt', 'answer' are separated by semicolons",
    ),
    "tabs": (
        "prompt\tanswer\nThe first\t 1\n",
        "row 1: the columns 'prompt', 'answer' are separated by tabs; save the",
    ),
    "bars": ("prompt|answer\nThe first| 1\n", "row 1: the columns 'prompt', 'answer' are separated by bars; save the"),
    "a column twice": ("prompt,answer,answer\n" + ROWS, "row 1: the column 'answer' stands there twice; keep one"),
    "a column twice but for spaces": (
        "prompt,answer, prompt\n" + ROWS,
        "row 1: the column 'prompt' stands there twice",
    ),
    "capitals": (
        "Prompt,Answer\n" + ROWS,
        "row 1: no column 'prompt' in 'Prompt, Answer'; write 'Prompt' in small letters",
    ),
    "no answers": ("prompt,split\na,test\n", "row 1: no column 'answer' in 'prompt, split'; the first line names"),
    "no header": (ROWS, "row 1: no column 'prompt' in 'The number after 0 is, 1'; the first line names the columns"),
    "JSON lines": (LINE, r"row 1: this is JSON and no table; name the file .jsonl"),
    "an empty cell": (
        HEAD + ROWS + ", 1\n",
        "row 5: no 'prompt': the cell is empty; fill it, or take the row out",
    ),
    "a blank cell": (HEAD + "The first,  \n", "row 2: answer is empty; give a text, or take the row out"),
    "a header alone": (HEAD, "the file holds no row with data; write one for each prompt under the first line"),
    "an open quote": (
        HEAD + '"The first, 1\n',
        "row 2: not CSV: a quote is opened and never closed; close every quote",
    ),
    "text behind a quote": (
        HEAD + '"The" first, 1\n',
        "row 2: not CSV: text stands behind a closing quote; close every",
    ),
    "a very long cell": (
        HEAD + ROWS + '"' + ("word " * 10_000 + "\n") * 3 + '", 1\n',
        "row 5: not CSV: a cell of more than 131,072 characters, as when a quote is left open",
    ),
    "a row behind a cell of two lines": (
        HEAD + '"The\nfirst", 1\n"The\nsecond", 2\nThe third\n',
        r"row 4 \(line 6\): 1 cell under 2 columns",
    ),
    "choices with a gap": (
        "prompt,answer,choices\na, b, b|| c\n",
        "row 2: choices is empty; give a text, or take the row",
    ),
    "JSON in a cell": ('prompt,answers\na,"[1, 2]"\n', "row 2: answers is 1, which is no text; put it in quotes"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_faults_of_tables_are_told_by_their_rows(name: str, tmp_path: Path) -> None:
    text, message = BAD_TABLES[name]
    path = tmp_path / "my.csv"
    path.write_text(text, encoding="utf-8")
    found = find_problems(path)
    assert re.search(message, found[0]), found
    assert not any("object" in problem or "line, such as {" in problem for problem in found)


def find_problems(path: Path) -> list[str]:
    """What is said of a file, in order."""
    try:
        _, problems, _ = read_records(path)
    except DataFileError as error:
        problems = list(error.problems)
    return [str(problem) for problem in sorted(problems, key=lambda problem: problem.line or 0)]


def test_cells_that_only_look_strange_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "my.CSV"
    path.write_text(
        "\n\ufeffprompt, answer, split\n"
        'A 5" disk, 1, test\n'  # a quote inside a cell opens nothing
        '" ""yes"" he said", 2, test\n'  # a cell that begins with a space and a quote, as a table writes it
        ' "Yes" is said, 3, test\n'
        "\n"
        '"a\n b", "4", test\n'.replace(' "4"', '" 4"'),
        encoding="utf-8",
    )
    records, problems, _ = read_records(path)
    assert not problems
    assert [record.prompt for record in records] == ['A 5" disk', ' "yes" he said', ' "Yes" is said', "a\n b"]
    assert [record.answers for record in records] == [(" 1",), (" 2",), (" 3",), (" 4",)]
    assert [str(record.place) for record in records] == ["row 3", "row 4", "row 5", "row 7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{LINE.strip()},\n", "line 1: not JSON .*; this looks like one JSON array: take out its brackets"),
        (f"{LINE.strip()},\n", "line 1: not JSON .*this looks like one JSON array: .* the commas between its objects"),
        (f"[{LINE.strip()}]\n", "line 1: a list instead of an object; write one object per line"),
        ("{'prompt': 'a', 'answer': ' b'}\n", "line 1: not JSON .*; JSON takes double quotes, not single ones"),
        ('{"prompt": "a", "answer": " b",}\n', "line 1: not JSON .*; take out the comma before the last bracket"),
        ('{"prompt": "a", "answers": [" b",]}\n', "line 1: not JSON"),
        ("{\n", "line 1: not JSON .*; a list or object over several lines must go on one"),
        ('  "prompt": "a",\n', "line 1: not JSON .*; a list or object over several lines must go on one"),
        (f"# mine\n{LINE}", "line 1: not JSON .*; JSON has no comments, take it out"),
        (f"// mine\n{LINE}", "line 1: not JSON .*; JSON has no comments, take it out"),
        (HEAD + ROWS, "line 1: not JSON .*; this looks like a table: name the file .csv"),
        ("\ufeff\ufeff" + LINE, "line 1: not JSON .*U\\+FEFF"),
        ('{"prompt": "a", "answer": NaN}\n', "line 1: NaN is no JSON value; give text"),
        ('{"prompt": "a", "answer_ids": [-Infinity]}\n', "line 1: -Infinity is no JSON value; give text"),
        ('{"prompt": "a", "answer_ids": [1e999]}\n', r"line 1: answer_ids is \[inf\]; give a list of token ids"),
        ('{"prompt": "a", "answer_ids": [4.0]}\n', r"line 1: answer_ids is \[4.0\]; give a list of token ids"),
        ('{"prompt": "a", "answer_ids": [true]}\n', r"line 1: answer_ids is \[True\]; give a list of token ids"),
        ('{"prompt": "a", "answer_ids": [' + "9" * 100 + "]}\n", "line 1: answer_ids is .*; give a list of token ids"),
        ('{"prompt": "a", "answer_ids": [' + "9" * 9000 + "]}\n", "line 1: .*or a number too long"),
        ('{"prompt": "a", "prompt": "b", "answer": " c"}\n', "line 1: the field 'prompt' stands there twice; keep one"),
        ('{"prompt": {"a": 1, "a": 2}, "answer": " c"}\n', "line 1: the field 'a' stands there twice; keep one"),
        ('{"prompt": ' + '{"a": ' * 10_000 + "\n", "line 1: JSON nested too deep, or .*; fields are text"),
        ('{"prompt": ' + "[" * 50_000 + "]" * 10 + "\n", "line 1: JSON nested too deep, or .*; fields are text"),
    ],
)
def test_faults_of_json_lines_are_told_with_their_cause(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(text, encoding="utf-8")
    found = find_problems(path)
    assert re.search(message, found[0]), found


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".jsonl", ".JsonL"])
@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: text.encode("utf-16"), "line 1: the file is UTF-16; save it as UTF-8"),
        (lambda text: text.encode("utf-16-le"), "line 1: the file is UTF-16; save it as UTF-8"),
        (lambda text: text.encode("utf-16-be"), "line 1: the file is UTF-16; save it as UTF-8"),
        (lambda text: text.encode("utf-32"), "line 1: the file is UTF-32; save it as UTF-8"),
        (lambda text: text.encode() + b"\x00", "there is a NUL byte: this is no text file"),
        (lambda text: text.replace("number", "numéro").encode("latin-1"), r"not UTF-8 \(byte 0xe9 .*save the file as"),
        (lambda text: text.replace("\n", "\r").encode(), "line 1: its lines end in CR alone"),
        (lambda text: text.encode() + b"a" * 70_000, "70,000 bytes; a line has at most 65,536, cut it"),
    ],
)
def test_other_encodings_are_named(encode: Callable[[str], bytes], message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"my{suffix}"
    path.write_bytes(encode(HEAD + ROWS if suffix.lower() == ".csv" else LINE * 3))
    found = find_problems(path)
    assert any(re.search(message, problem) for problem in found), found


@pytest.mark.parametrize("name", thin(["my.CSV", "my.Csv", "my.JSONL", "my.JsonL"], ["my.CSV", "my.JsonL"]))
def test_suffixes_count_in_any_case(
    name: str, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(f"The number after {i} is", f" {i + 1}") for i in range(40)]
    text = HEAD + "".join(f"{prompt},{answer}\n" for prompt, answer in rows)
    if name.lower().endswith(".jsonl"):
        text = "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows)
    Path(name).write_text(text)
    assert is_file_task(name)
    code, out, err = run.all(
        "--task", name, "--model", make_checkpoint(), "--out", "m.onnx", "--dry-run", "--force", "--json"
    )
    assert code == 0 and json.loads(out)["prompts"] == {"patching": 10, "selection": 10, "test": 20}, err
    assert "cannot do this task" in run.all("check-data", name, "--model", make_checkpoint())[2]
    if name.lower().endswith(".csv"):
        run.succeeds("make-data", "--fill", name, "--template", "So {prompt}", "--out", "made.JSONL")
        assert len(Path("made.JSONL").read_text().splitlines()) == 40 and not Path("made.jsonl").exists()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_pipe, "this is a pipe and no file that can be read"),
        (make_socket, "cannot be read: No such device or address"),
        (lambda path: path.symlink_to("/dev/zero"), "this is a device and no file that can be read"),
        (lambda path: path.symlink_to(os.devnull), "this is a device and no file that can be read"),
        (lambda path: path.mkdir(), "this is a folder and no file that can be read"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "no such file; check the name"),
    ],
)
def test_what_is_no_plain_file_is_refused_at_once(
    make: Callable[[Path], None], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    path = Path("my.csv")
    make(path)
    with pytest.raises(DataFileError, match=message):
        read_records(path)
    with pytest.raises(DataFileError, match=message):
        fill_template("{a}", path)
    run.fails(3, message, "make-data", "--fill", path, "--template", "{a}", "--out", "made.jsonl")


def test_a_file_or_folder_that_may_not_be_read_is_bad_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.csv"
    path.write_text(HEAD + ROWS)
    given = ("make-data", "--fill", path, "--template", "{prompt}", "--out", tmp_path / "made.jsonl")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        run.fails(3, "the file or its folder may not be read; give yourself leave", *given)
    path.chmod(stat.S_IRUSR)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # for those who may read everything
        patch.setattr(lines.os, "open", refuse)
        run.fails(3, "the file or its folder may not be read; give yourself leave", *given)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/my.csv", "a\x00b.csv", "x" * 300 + ".csv", "my.csv/other.csv"])
def test_names_that_no_file_can_have(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text(HEAD + ROWS)
    with pytest.raises(DataFileError, match=r"no such file|cannot be read"):
        read_records(path)


@pytest.mark.parametrize(
    "change",
    [{"sizes": None}, {"sizes": {"train": 3}}, {"sizes": {"test": "9"}}, {"seed": None}, {"seed": []}, {"seed": "x"}],
)
def test_a_manifest_that_does_not_say_which_prompts_is_bad_input(
    change: dict[str, object], bundled: LanguageModel
) -> None:
    parameters = {"seed": 0, "sizes": {}} | change
    with pytest.raises(InputError):
        rebuild_task("acronym", parameters, bundled.tokenizer)


def test_a_file_that_grows_beyond_all_bounds_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST_FILE", 1000)
    path = tmp_path / "my.csv"
    path.write_text(HEAD + ROWS * 100)
    with pytest.raises(DataFileError, match=r"the file has .* bytes; some thousand lines are enough, cut it"):
        read_records(path)
