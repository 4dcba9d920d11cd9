"""White space that cannot be seen: refused around answers where it is tokens of its own, warned of inside texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from exporter.loading.load import LanguageModel
from exporter.tasks import DEFAULT_SIZES, DataFileError, read_task_file

BLANKS: dict[str, tuple[str, str, str]] = {
    "no-break space before": ("The answer is", "\u00a0yes", r"U\+00A0 \(no-break space\) between prompt and answer"),
    "narrow no-break space before": ("The answer is", "\u202fyes", r"U\+202F \(narrow no-break space\) between"),
    "ideographic space before": ("The answer is", "\u3000yes", r"U\+3000 \(ideographic space\) between"),
    "zero-width space before": ("The answer is", "\u200b yes", r"U\+200B \(zero width space\) between"),
    "no-break space at the prompt's end": ("The answer is\u00a0", "yes", r"U\+00A0 \(no-break space\) between"),
    "byte order mark at the prompt's end": ("The answer is\ufeff", " yes", r"U\+FEFF \(byte order mark\) between"),
    "two spaces": ("The answer is", "  yes", "2 spaces between prompt and answer .* put one plain space before"),
    "a space on both sides": ("The answer is ", " yes", "2 spaces between prompt and answer '"),
    "a space behind": (
        "The answer is",
        " yes ",
        r"the answer ' yes ' ends in U\+0020 \(space\), which is a token of its own",
    ),
    "a no-break space behind": ("The answer is", " yes\u00a0", r"ends in U\+00A0 \(no-break space\), which is a token"),
    "a zero-width space behind": (
        "The answer is",
        " yes\u200b",
        r"ends in U\+200B \(zero width space\), which is a token",
    ),
    "a carriage return behind": ("The answer is", " yes\r", r"ends in U\+000D \(carriage return\), which is a token"),
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", BLANKS)
def test_white_space_that_is_a_token_of_its_own_is_refused(
    name: str, suffix: str, tmp_path: Path, bundled: LanguageModel
) -> None:
    prompt, answer, message = BLANKS[name]
    path = tmp_path / f"my{suffix}"
    if suffix == ".csv":
        path.write_text(f'prompt,answer\n"{prompt}","{answer}"\n', encoding="utf-8", newline="")
    else:
        path.write_text(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
    if "\r" in answer and suffix == ".csv":
        answer = answer.strip("\r")
    with pytest.raises(DataFileError, match=message) as caught:
        read_task_file(path, bundled.tokenizer, sizes=DEFAULT_SIZES)
    assert str(caught.value.problems[0].place) == ("row 2" if suffix == ".csv" else "line 1")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("Q: is it?\nA:", " yes"), ("Q: is it?\nA:\n", "yes"), ("cat\t", "chat"), ("Say", "\nyes"), ("Say", " yes\n")],
)
def test_line_breaks_and_tabs_are_taken_for_meant(
    prompt: str, answer: str, tmp_path: Path, bundled: LanguageModel
) -> None:
    assert read_one(tmp_path, bundled, {"prompt": prompt, "answer": answer}) == "the patching set needs at least 8"


def test_given_ids_may_hold_any_white_space(tmp_path: Path, bundled: LanguageModel) -> None:
    encode = bundled.tokenizer.encode
    row = {"prompt_ids": encode("The answer is\u00a0"), "answer_ids": encode("yes ")}
    assert read_one(tmp_path, bundled, row) == "the patching set needs at least 8"


def test_a_space_that_the_tokenizer_makes_anyway_is_no_fault(tmp_path: Path) -> None:
    """Some tokenizers keep a digit and the space before it apart: then the prompt may end in the space."""
    letters = {letter: i for i, letter in enumerate(sorted(set("The answer is 4\u00a0")))}
    names = {i: letter for letter, i in letters.items()}

    class Letters:
        bos_token_id = eos_token_id = None

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [letters[letter] for letter in text.replace("\u00a0", " ")]

        def decode(self, token_ids: list[int]) -> str:
            return "".join(names[token] for token in token_ids)

    for prompt in ("The answer is ", "The answer is\u00a0"):  # it reads both alike
        path = tmp_path / "my.jsonl"
        path.write_text(json.dumps({"prompt": prompt, "answer": "4"}) + "\n")
        with pytest.raises(DataFileError, match="set needs at least 8"):
            read_task_file(path, Letters(), sizes=DEFAULT_SIZES)


def read_one(tmp_path: Path, bundled: LanguageModel, row: dict[str, object]) -> str:
    """What is said of a file with one line: that it is too short, where the line is good."""
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataFileError) as caught:
        read_task_file(path, bundled.tokenizer, sizes=DEFAULT_SIZES)
    return caught.value.problems[0].message[:33]


def test_odd_characters_inside_are_warned_of(run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    rows = [
        {"prompt": f"Is {i} even? Say", "answer": (" yes", " no")[i % 2], "choices": [" yes", " no"]} for i in range(40)
    ]
    for line, character in ((2, "\u00a0"), (5, "\u00a0"), (7, "\u200b"), (8, "\x85")):
        rows[line - 1]["prompt"] = f"Is{character} {line}"
    rows[20]["prompt"] = (
        "Is \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 even?"  # a joiner is part of how Persian is written
    )
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run.all("check-data", path, "--model", make_checkpoint())
    assert "warning: U+00A0 (no-break space) stands in lines 2 and 5: it cannot be told from a space" in out
    assert "warning: U+200B (zero width space) stands in line 7" in out and "U+0085 (next line) stands in line 8" in out
    assert "U+200C" not in out
    code, out, err = run.all(
        "--task", path, "--model", make_checkpoint(), "--out", tmp_path / "m.onnx", "--dry-run", "--force"
    )
    assert code == 0 and "warning: U+00A0 (no-break space) stands in lines 2 and 5" in err
