"""Tasks from a file: what is read, what is refused and with which words, and what the model then gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from tiers import as_slow, thin

from exporter.errors import InputError, UsageError
from exporter.evidence.fitness import check_data
from exporter.loading.load import LanguageModel, load_model
from exporter.runtime.session import open_session, run_logits
from exporter.tasks import DEFAULT_SIZES, DataFileError, Limits, SplitSizes, load_task, read_task_file, rebuild_task
from exporter.tasks.fill import fill_template

YES_NO = [" yes", " no"]


def number_lines(n: int = 40) -> list[dict[str, Any]]:
    """Good lines, the first being line 1; answers of one token."""
    return [{"prompt": f"The number after {i} is", "answer": f" {i + 1}"} for i in range(n)]


def choice_lines(n: int = 40) -> list[dict[str, Any]]:
    return [{"prompt": f"Is {i} even? Say", "answer": YES_NO[i % 2], "choices": YES_NO} for i in range(n)]


def to_text(lines: list[Any]) -> bytes:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()


def change(line: int, lines: list[dict[str, Any]] | None = None, drop: str = "", **fields: Any) -> bytes:
    """Good lines with the fields of one changed."""
    lines = number_lines() if lines is None else lines
    lines[line - 1] = {name: value for name, value in (lines[line - 1] | fields).items() if name != drop}
    return to_text(lines)


def put(line: int, text: str | bytes, lines: list[dict[str, Any]] | None = None) -> bytes:
    """Good lines with one of them replaced by this text."""
    rows = to_text(number_lines() if lines is None else lines).split(b"\n")
    rows[line - 1] = text if isinstance(text, bytes) else text.encode()
    return b"\n".join(rows)


def split_lines(**sizes: int) -> list[dict[str, Any]]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return [row | {"split": name} for row, name in zip(number_lines(len(names)), names, strict=True)]


HEAD = b"prompt,answer\n"
ROWS = b"".join(b"The number after %d is, %d\n" % (i, i + 1) for i in range(40))
SAME = "The number after 3 is"  # line 4

# Content of a file (a name's ending says which kind), and what is said of it: the line, the fault, the remedy.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no line with data; write one object per line"),
    "blank": (b"\n \n\r\n", "holds no line with data; write one object per line"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "line 3: there is a NUL byte.*give UTF-8 text"),
    "utf-16": (to_text(number_lines()).decode().encode("utf-16"), "line 1: the file is UTF-16; save it as UTF-8"),
    "latin-1": (change(7, prompt="X").replace(b"X", b"Caf\xe9"), r"line 7: not UTF-8 \(byte 0xe9 .*save the file"),
    "huge line": (change(5, prompt="word " * 20000), "line 5: 100,0.. bytes; a line has at most 65,536, cut it"),
    "too many lines": (b"\n" * 100_001, "line 100001: there are more than 100,000 lines.*cut the file"),
    "truncated": (to_text(number_lines())[:-20], r"line 40: not JSON .*write one object per line, such as \{"),
    "prose": (put(1, "Once upon a time"), "line 1: not JSON .*write one object per line"),
    "pretty-printed": (json.dumps(number_lines(), indent=1).encode(), "line 1: not JSON.*must go on one"),
    "one array": (
        json.dumps(number_lines()).encode(),
        "line 1: a list instead of an object; write one object per line",
    ),
    "a number": (put(3, "17"), "line 3: 17 instead of an object"),
    "two objects on a line": (put(3, "{} {}"), "line 3: not JSON .Extra data.*write one object per line"),
    "duplicate field": (
        put(9, '{"prompt": "a", "prompt": "b", "answer": " c"}'),
        "line 9: the field 'prompt'.* twice; keep",
    ),
    "NaN": (put(2, '{"prompt": NaN, "answer": " a"}'), "line 2: NaN is no JSON value; give text"),
    "nested nonsense": (put(2, "[" * 60000), "line 2: JSON nested too deep.*fields are text"),
    "nested prompt": (change(2, prompt={"text": ["a"]}), "line 2: prompt is .*no text; put it in quotes"),
    "huge number": (put(2, '{"prompt_ids": [' + "9" * 5000 + '], "answer": " a"}'), "line 2: .*a number too long"),
    "half a character": (put(2, '{"prompt": "\\ud83d", "answer": " a"}'), "line 2: prompt holds half of a surrogate"),
    "no prompt": (change(6, drop="prompt"), "line 6: no 'prompt'; write one object per line, such as"),
    "no answer": (
        change(6, drop="answer", split="test"),
        "line 6: no 'answer': the set test needs one, and only patching lines may go without; give it, or",
    ),
    "null answer": (change(6, answer=None, split="ood:far"), "line 6: no 'answer': the set far needs one"),
    "unknown field": (change(6, answr=" 7"), "line 6: unknown field 'answr'; did you mean 'answer'"),
    "strange field": (change(6, colour="red"), "line 6: unknown field 'colour'; known are prompt, answer"),
    "empty prompt": (change(8, prompt=" "), "line 8: prompt is empty; give a text, or take the line out"),
    "empty answer": (change(8, answer=""), "line 8: answer is empty; give a text, or take the line out"),
    "number as answer": (change(8, answer=9), "line 8: answer is 9, which is no text; put it in quotes"),
    "answers no list": (change(8, answers=" 9"), r"line 8: answers is ' 9'; give a list of texts, such as \["),
    "answers empty": (change(8, answers=[]), r"line 8: answers is \[\]; give a list of texts"),
    "answer twice": (change(8, answers=[" 9", " 9"]), "line 8: ' 9' stands twice among the answers; keep one"),
    "several answers of several tokens": (
        change(8, answers=[" 9", " nine thousand"]),
        r"line 8: ' nine thousand' is 2 tokens, ' nine\| thousand'; with several answers each must be one",
    ),
    "answer not among the choices": (
        change(8, choice_lines(), answer=" maybe"),
        "line 8: the answer ' maybe' is not among the choices; add it",
    ),
    "one choice": (change(8, choice_lines(), choices=[" no"]), "line 8: only one choice; give two or more"),
    "choices of several tokens": (
        change(8, choice_lines(), choices=[" no", " certainly not"]),
        r"line 8: ' certainly not' is 2 tokens, ' certainly\| not'; with choices each must be one",
    ),
    "a choice without its space": (
        change(8, choice_lines(), answer="Portugal", choices=["Portugal", " yes"]),
        "line 8: 'Portugal' is 2 tokens, .*write ' Portugal', which is one",
    ),
    "an answer without its space": (change(8, answer="Portugal"), "line 8: 'Portugal' is 2.*sticks.*write ' Portugal'"),
    "choices on some lines": (
        change(8, choice_lines(), drop="choices"),
        "line 8: no choices, but line 1 has some; give",
    ),
    "choices and distractors": (
        change(8, choice_lines(), distractors=[" a"]),
        "line 8: both choices and distractors; give",
    ),
    "distractor that is right": (
        change(8, distractors=[" 8"]),
        "line 8: the distractor ' 8' is also an answer; take it",
    ),
    "choices and ids": (
        change(8, choice_lines(), drop="answer", answer_ids=[5]),
        "line 8: answer_ids do not go with choices.*give the answer as text",
    ),
    "space at the prompt's end": (
        change(8, prompt="The number after 7 is ", answer="8"),
        "line 8: prompt and answer merge: .*move the space from the prompt's end to the answer's start",
    ),
    "boundary in a word": (
        change(8, prompt="The inter", answer="national"),
        "line 8: prompt and answer merge: .*put the boundary where a word begins",
    ),
    "prompt longer than the context": (
        change(8, prompt="word " * 70 + "is"),
        "line 8: 71 tokens, the model takes 64; short",
    ),
    "answer beyond the context": (change(8, answer=" word" * 70), "line 8: 74 tokens, the model takes 64; shorten"),
    "ids out of range": (
        change(8, drop="prompt", prompt_ids=[5, 50257]),
        "line 8: token id 50257 is out of range.* 0 to 50256",
    ),
    "answer ids out of range": (change(8, drop="answer", answer_ids=[99999]), "line 8: token id 99999 is out of range"),
    "negative ids": (
        change(8, drop="prompt", prompt_ids=[-1]),
        r"line 8: prompt_ids is \[-1\]; give a list of token ids",
    ),
    "ids that are text": (change(8, drop="prompt", prompt_ids=["5"]), "line 8: prompt_ids is .*whole numbers from 0"),
    "no ids": (change(8, drop="prompt", prompt_ids=[]), r"line 8: prompt_ids is \[\]; give a list of token ids"),
    "prompt and ids": (change(8, prompt_ids=[5]), "line 8: both prompt and prompt_ids; give one of them"),
    "unknown split": (change(8, split="train"), "line 8: split is 'train'; choose from patching, selection, test, ood"),
    "split of no name": (change(8, split="ood:test"), "line 8: split is 'ood:test'; name an unseen set"),
    "split that is a list": (change(8, split=["test"]), "line 8: split is .*; choose from patching"),
    "split on some lines": (change(8, split="test"), "line 1: no split, but line 8 has one; give it to all lines"),
    "a set too small": (
        to_text(split_lines(patching=9, selection=9, test=3)),
        "the test set needs at least 8 prompts, 3 lines",
    ),
    "a leak": (
        change(12, split_lines(patching=9, selection=9, test=9), prompt=SAME),
        "line 12: the prompt of line 4 again, there in patching and here in selection: a leak; take one of them out",
    ),
    "contradiction": (
        change(12, prompt=SAME),
        "line 12: the prompt of line 4 again, with another answer.*keep one line",
    ),
    "one class": (
        to_text([row | {"answer": " 5"} for row in number_lines()]),
        "the file has one answer only, ' 5'.*; add",
    ),
    "one class in a set": (
        to_text(
            split_lines(patching=9, selection=9)
            + [row | {"answer": " 5", "split": "test"} for row in number_lines(30)[18:]]
        ),
        "the set test has one answer only, ' 5'.*add lines",
    ),
    "too few lines": (
        to_text(number_lines(12)),
        "the patching set needs at least 8 prompts, 12 different.*give it 3; add",
    ),
    "one line many times": (to_text(number_lines(1) * 50), "the patching set needs at least 8 prompts, 1 different"),
    "header alone.csv": (HEAD, "holds no row with data; write one for each prompt under the first line"),
    "no header.csv": (
        ROWS,
        "row 1: no column 'prompt' in 'The number after 0 is, 1'; the first line names the columns",
    ),
    "semicolons.csv": ((HEAD + ROWS).replace(b",", b";"), "row 1: the columns 'prompt', 'answer' .* by semicolons"),
    "unknown column.csv": (b"prompt,answer,weight\n" + ROWS, "row 1: unknown field 'weight'; known are"),
    "header with a comma too many.csv": (b"prompt,answer,\n" + ROWS, "row 1: column 3 has no name; name it, or"),
    "UTF-32": ("\ufeffx".encode("utf-32-le"), "line 1: the file is UTF-32; save it as UTF-8"),
    "line ends of old": (to_text(number_lines()).replace(b"\n", b"\r"), "line 1: its lines end in CR alone; save it"),
    "column twice.csv": (b"prompt,answer,prompt\n" + ROWS, "row 1: the column 'prompt' stands there twice; keep one"),
    "comma in a cell.csv": (
        HEAD + b"Well, it is, 5\n" + ROWS,
        "row 2: 3 cells under 2 columns; put cells with a comma",
    ),
    "open quote.csv": (HEAD + b'"The number, 5\n' + ROWS, "row 2: not CSV: .*close every quote"),
    "empty cell.csv": (
        b"prompt,answer,split\nThe number is,,selection\n",
        "row 2: no 'answer': the set selection needs one, and only patching rows may go without; give it, or",
    ),
    "ids that are words.csv": (b"prompt_ids,answer\nx y, 5\n", "row 2: prompt_ids is 'x y'; give token ids, such as"),
    "a broken list.csv": (b'prompt,answers\na,"[1"\n', r"row 2: answers is '\[1', which is no JSON list; write a\|b"),
    "another ending.json": (to_text(number_lines()), "its name must end in .jsonl or .csv, not in '.json'; save it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name: str, tmp_path: Path, bundled: LanguageModel) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / (name if "." in name else f"{name}.jsonl")
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_task(str(path), bundled.tokenizer, limits=Limits(max_length=64, vocabulary=50257))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", thin(BAD_FILES, [*BAD_FILES][::10]))
def test_a_job_with_a_bad_file_ends_in_one_line(
    name: str, run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    content, message = BAD_FILES[name]
    path, out = tmp_path / (name if "." in name else f"{name}.jsonl"), tmp_path / "out"
    path.write_bytes(content)
    out.mkdir()
    error = run.fails(3, message, "--task", path, "--model", make_checkpoint(), "--out", out / "m.onnx")
    assert str(path) in error
    assert not list(out.iterdir())


def test_what_is_no_file_is_refused(run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    rest = ("--model", make_checkpoint(), "--out", tmp_path / "m.onnx")
    run.fails(3, "none.jsonl: no such file; check the name", "--task", tmp_path / "none.jsonl", *rest)
    run.fails(3, "this is a folder and no file that can be read; give", "--task", tmp_path / "folder.jsonl", *rest)
    run.fails(
        3, "cannot be read: File name too long; .* give another name", "--task", tmp_path / f"{'x' * 300}.jsonl", *rest
    )
    run.fails(2, "unknown task 'foo'; choose from .*, or give a .jsonl or .csv file", "--task", "foo", *rest)
    run.fails(2, "has no parameter 'letters'; it takes template", "--task", "x.jsonl", "--letters", "3", *rest)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a data file and returns its path."""

    def write(content: bytes | list[Any], name: str = "my.jsonl") -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else to_text(content))
        return str(tmp_path / name)

    return write


def prompts_of(tokenizer: Any, data: Any) -> list[str]:
    sets = (data.patching, data.selection, data.test, *data.ood.values())
    return [str(tokenizer.decode(row.tolist())) for dataset in sets for row in dataset.input_ids]


def test_sets_are_disjoint_seeded_and_scaled_down(write: Callable[..., str], bundled: LanguageModel) -> None:
    path = write(number_lines(90))
    data = load_task(path, bundled.tokenizer)
    assert [len(d) for d in (data.patching, data.selection, data.test)] == [22, 22, 46]
    found = prompts_of(bundled.tokenizer, data)
    assert len(set(found)) == 90
    again, other = (load_task(path, bundled.tokenizer, seed=seed) for seed in (0, 1))
    assert prompts_of(bundled.tokenizer, again) == found != prompts_of(bundled.tokenizer, other)
    small = load_task(path, bundled.tokenizer, sizes=SplitSizes(patching=9, selection=10, test=11))
    assert [len(d) for d in (small.patching, small.selection, small.test)] == [9, 10, 11]


def test_parameters_rebuild_the_data_where_the_file_is_now(
    write: Callable[..., str], bundled: LanguageModel, tmp_path: Path
) -> None:
    path = write(number_lines())
    data = load_task(path, bundled.tokenizer, seed=3)
    parameters = json.loads(json.dumps(data.parameters))
    assert parameters["path"] == path and len(parameters["sha256"]) == 64 and data.task == "my.jsonl"
    assert prompts_of(bundled.tokenizer, rebuild_task("my.jsonl", parameters, bundled.tokenizer)) == prompts_of(
        bundled.tokenizer, data
    )
    moved = tmp_path / "moved.jsonl"
    shutil.move(path, moved)
    with pytest.raises(InputError, match=r"no file .*my.jsonl: it has moved; say where .*--task FILE"):
        rebuild_task("my.jsonl", parameters, bundled.tokenizer)
    assert rebuild_task("my.jsonl", parameters, bundled.tokenizer, path=moved).test.length == data.test.length
    moved.write_bytes(to_text(number_lines(41)))
    with pytest.raises(InputError, match=r"has changed .*--task FILE"):
        rebuild_task("my.jsonl", parameters, bundled.tokenizer, path=moved)
    with pytest.raises(UsageError, match="--task is for a task from a file"):
        rebuild_task("acronym", load_task("acronym", bundled.tokenizer).parameters, bundled.tokenizer, path=moved)


def test_given_splits_are_kept_and_capped(write: Callable[..., str], bundled: LanguageModel) -> None:
    lines = split_lines(patching=10, selection=12, test=20)
    lines += [{"prompt": f"After {i} comes", "answer": f" {i + 1}", "split": f"ood:{'ab'[i % 2]}"} for i in range(10)]
    found = read_task_file(write(lines), bundled.tokenizer, sizes=SplitSizes(test=15))
    assert {name: len(rows) for name, rows in found.examples.items()} == {
        "patching": 10, "selection": 12, "test": 15, "a": 5, "b": 5,
    }  # fmt: skip
    assert {row.record.split for row in found.examples["test"]} == {"test"}
    assert (found.lines, found.duplicates, found.unused) == (52, 0, 5)
    free = [row if row["split"].startswith("ood") else row | {"split": None} for row in lines]
    data = load_task(write(free), bundled.tokenizer)
    assert (len(data.patching), len(data.selection), len(data.test)) == (10, 10, 22)
    assert {name: len(dataset) for name, dataset in data.ood.items()} == {"a": 5, "b": 5}


def test_a_prompt_that_stands_there_twice_is_used_once(write: Callable[..., str], bundled: LanguageModel) -> None:
    found = read_task_file(write(number_lines() + number_lines(3)), bundled.tokenizer, sizes=DEFAULT_SIZES)
    assert (found.lines, found.duplicates) == (43, 3)
    assert sum(map(len, found.examples.values())) == 40


def test_several_answers_choices_and_distractors(write: Callable[..., str], bundled: LanguageModel) -> None:
    def encode(*words: str) -> list[int]:
        return [bundled.tokenizer.encode(word)[0] for word in words]

    several = [row | {"answers": [" many", row["answer"]]} for row in number_lines()]
    data = load_task(write(several), bundled.tokenizer)
    assert data.test.answer_ids.shape == (20, 2) and data.test.choice_ids is None
    assert (data.test.answer_ids[:, 1] == encode(" many")[0]).all()
    data = load_task(write(choice_lines()), bundled.tokenizer)
    assert data.test.answer_ids.shape == (20, 1)
    assert data.test.choice_ids.tolist() == [encode(" yes", " no")] * 20
    lines = [row | {"distractors": [" cat", " dog"][: 1 + i % 2]} for i, row in enumerate(several)]
    data = load_task(write(lines), bundled.tokenizer)
    assert data.test.choice_ids.shape == (20, 4)
    for answers, choices in zip(data.test.answer_ids.tolist(), data.test.choice_ids.tolist(), strict=True):
        assert choices[:2] == answers and choices[2:] in (encode(" cat", " dog"), [*encode(" cat"), -1])


def test_csv_and_jsonl_give_the_same(write: Callable[..., str], bundled: LanguageModel) -> None:
    rows = ["\ufeffprompt,answers,distractors,split\r"]
    lines = []
    for i, line in enumerate(split_lines(patching=8, selection=8, test=8)):
        prompt = f'Well, "{i}"\nplus one is'
        rows.append(f'"{prompt}"'.replace(f'"{i}"', f'""{i}""') + f", {i + 1}| many, cat,{line['split']}")
        answers = {"answers": [f" {i + 1}", " many"], "distractors": [" cat"]}
        lines.append({"prompt": prompt, "split": line["split"], **answers})
    first = load_task(write("\n".join(rows).encode(), "my.csv"), bundled.tokenizer)
    second = load_task(write(lines), bundled.tokenizer)
    for name in ("patching", "selection", "test"):
        one, two = getattr(first, name), getattr(second, name)
        assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.answer_ids, two.answer_ids)
        assert torch.equal(one.choice_ids, two.choice_ids)


def test_ids_stand_for_texts(write: Callable[..., str], bundled: LanguageModel) -> None:
    encode = bundled.tokenizer.encode
    ids = [{"prompt_ids": encode(row["prompt"]), "answer_ids": encode(row["answer"])} for row in number_lines()]
    text, given = (load_task(write(lines), bundled.tokenizer) for lines in (number_lines(), ids))
    assert torch.equal(text.test.input_ids, given.test.input_ids)
    assert torch.equal(text.test.answer_ids, given.test.answer_ids)
    mixed = [{"prompt_ids": row["prompt_ids"], "answer": f" {i + 1}"} for i, row in enumerate(ids)]
    assert torch.equal(load_task(write(mixed), bundled.tokenizer).test.answer_ids, text.test.answer_ids)


def test_special_tokens_follow_the_tokenizer(write: Callable[..., str], bundled: LanguageModel) -> None:
    class WithStart:
        bos_token_id = eos_token_id = 50256

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            ids = bundled.tokenizer.encode(text, add_special_tokens=False)
            return [50256, *ids] if add_special_tokens else ids

        def decode(self, token_ids: list[int]) -> str:
            return str(bundled.tokenizer.decode(token_ids))

    path = write(number_lines())
    plain, started = load_task(path, bundled.tokenizer), load_task(path, WithStart())
    assert (plain.parameters["special_ids"], started.parameters["special_ids"]) == ([], [50256])
    assert torch.equal(started.test.input_ids[:, 1:], plain.test.input_ids)
    assert (started.test.input_ids[:, 0] == 50256).all()


def test_an_answer_of_several_tokens_is_forced(write: Callable[..., str], bundled: LanguageModel) -> None:
    lines = [{"prompt": f"After {i} comes", "answer": f" {i + 1}" + " apples" * (i % 2)} for i in range(40)]
    test = load_task(write(lines), bundled.tokenizer).test
    assert test.steps.shape == (20, 2, 1) and test.mask is not None
    for row, mask, steps in zip(test.input_ids, test.mask, test.steps[..., 0], strict=True):
        text = bundled.tokenizer.decode(row[mask].tolist())
        number = int(text.split()[1])
        if number % 2:
            assert text == f"After {number} comes {number + 1}"
            assert bundled.tokenizer.decode(steps.tolist()) == f" {number + 1} apples"
        else:
            assert text == f"After {number} comes" and steps[0] == -1
            assert bundled.tokenizer.decode(steps[1:].tolist()) == f" {number + 1}"
        assert mask.tolist() == sorted(mask.tolist())


def test_prompts_of_one_length_have_no_mask(write: Callable[..., str], bundled: LanguageModel) -> None:
    data = load_task(write(number_lines()), bundled.tokenizer)
    assert data.test.mask is None and data.test.length == 5
    lines = number_lines()
    lines[0]["prompt"] = "You may know that the number after 0 is"
    data = load_task(write(lines), bundled.tokenizer)
    assert {d.length for d in (data.patching, data.selection, data.test)} == {9}
    assert data.parameters["pad_id"] == bundled.tokenizer.eos_token_id
    padded = load_task(write(lines), bundled.tokenizer, limits=Limits(vocabulary=40_000))
    assert padded.parameters["pad_id"] == 0  # the end of text is no token of such a model


def test_all_problems_are_found_at_once(write: Callable[..., str], run: Run, make_checkpoint: Any) -> None:
    lines = [*number_lines(), "x", {"answer": "a"}, {"prompt": "a ", "answer": "b"}]
    with pytest.raises(DataFileError, match=r"line 41: not JSON .*2 more problems: export-") as caught:
        load_task(write(lines), load_model(make_checkpoint()).tokenizer)
    assert [problem.line for problem in caught.value.problems] == [41, 42, 43]
    code, out, err = run.all("check-data", write(lines), "--model", make_checkpoint())
    assert code == 3 and [line.split(":")[0] for line in out.splitlines()] == ["line 41", "line 42", "line 43"]
    assert "has 3 problems; mend them" in err and err.count("\n") == 1
    code, out, err = run.all("check-data", write(lines), "--model", make_checkpoint(), "--json")
    assert [problem["line"] for problem in json.loads(out)["problems"]] == [41, 42, 43]
    code, out, err = run.all("check-data", write(["x"] * 30), "--model", make_checkpoint())
    assert out.splitlines()[-1] == "... and 10 more" and len(out.splitlines()) == 21 and "30 problems" in err


def test_check_data_says_what_will_be_used(write: Callable[..., str], run: Run, make_checkpoint: Any) -> None:
    lines = [*choice_lines(), {"prompt": "Is a hundred even? Well, say", "answer": " yes", "choices": YES_NO}]
    path, model = write([*lines, lines[0]]), make_checkpoint()
    found = json.loads(run.succeeds("check-data", path, "--model", model, "--json"))
    assert (found["lines"], found["duplicates"], found["unused"]) == (42, 1, 0)
    assert found["sets"] == {"patching": 10, "selection": 10, "test": 21}
    assert found["answers"] == {"one of 2 choices": 41} and sum(found["lengths"].values()) == 41
    assert set(found["accuracy"]) == set(found["sets"]) and found["fitness"]["chance"] == 0.5
    assert found["fit"] in ("yes", "unclear")
    assert all("".join(row["tokens"]).startswith("Is") and row["answers"][0][0] in YES_NO for row in found["examples"])
    text = run.succeeds("check-data", path, "--model", model)
    assert "Is| 3" in text or "Is| 1" in text or "Is| 2" in text
    assert "| Say [ " in text and "(1 duplicates, 0 beyond" in text and "one of 2 choices: 41" in text


def test_check_data_marks_each_answer_position(write: Callable[..., str], run: Run, make_checkpoint: Any) -> None:
    lines = [{"prompt": f"After {i} comes", "answer": f" {i + 1} apples"} for i in range(40)]
    code, text, err = run.all("check-data", write(lines), "--model", make_checkpoint())
    assert "0 of padding, answered at positions 2, 3:" in text
    assert any(f"After| {i}| comes [ {i + 1}] ->  [ apples]" in text for i in range(40))
    assert code == 3 and "cannot do this task: its accuracy on the selection set is 0.0%" in err


def test_the_bundled_model_can_do_acronyms_from_a_file(write: Callable[..., str], bundled: LanguageModel) -> None:
    """A file with a built-in task's own prompts has its accuracy; chance is 5 %."""
    data = load_task("acronym", bundled.tokenizer, sizes=SplitSizes(20, 20, 40, 8))
    lines = [
        {"prompt_ids": ids, "answer_ids": answers}
        for ids, answers in zip(data.test.input_ids.tolist(), data.test.answer_ids.tolist(), strict=True)
    ]
    report = check_data(write(lines), bundled)
    assert report.fitness.verdict == "yes" and report.fitness.chance == 0.05
    assert report.answers == {"one token": 40} and report.accuracy["test"].accuracy >= 0.9


def test_a_task_that_the_model_fails_at_is_refused_unless_forced(
    write: Callable[..., str], run: Run, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = (
        "--task",
        write(number_lines()),
        "--model",
        make_checkpoint(),
        "--out",
        tmp_path / "m.onnx",
        "--dry-run",
    )
    run.fails(3, r"cannot do the task .*my.jsonl: .*0.0% .*chance is 5.0%; .*or go on with --force", *arguments)
    code, out, err = run.all(*arguments, "--force", "--json", "--preset", "paper")
    plan = json.loads(out)
    assert code == 0 and plan["alpha"] == 0.02 and plan["prompts"] == {"patching": 10, "selection": 10, "test": 20}
    assert "warning: " in err and "not known to be better than chance" in err
    code, _, err = run.all(*arguments, "--teacher", "labels")  # which are what it is to learn
    assert code == 0 and "not known to be better than chance" in err
    assert not (tmp_path / "m.onnx").exists()


def test_main_job_and_verify_with_a_file(
    write: Callable[..., str], run: Run, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    lines = [{"prompt": f"Is {i} even? Say", "answer": YES_NO[i % 2], "choices": YES_NO} for i in range(10, 50)]
    path, out = write(lines), tmp_path / "m.onnx"
    job = ("--task", path, "--model", make_checkpoint(), "--out", out, "--force", "--json")
    manifest = json.loads(run.succeeds(*job, "--preset", "paper"))
    assert manifest["alpha_sweep"] is None and manifest["circuit"]["alpha"] == 0.02
    assert manifest["task"]["name"] == "my.jsonl" and manifest["test"]["n"] == 20
    assert json.loads(run.succeeds("verify", out, "--json"))["prompts"] == 20
    shutil.move(path, tmp_path / "moved.jsonl")
    run.fails(3, "it has moved; say where the task's file is now: --task FILE", "verify", out)
    assert "is exact" in run.succeeds("verify", out, "--task", tmp_path / "moved.jsonl")
    write([*lines[1:], lines[0]])
    run.fails(3, "my.jsonl has changed .*--task FILE", "verify", out)


@pytest.mark.parametrize(
    ("arguments", "align"),
    [
        ((), "left"),
        (("--align", "right"), "right"),
        as_slow((("--mean", "global"), "left")),
        as_slow((("--ablation", "zero"), "left")),
    ],
)
def test_main_job_on_prompts_of_several_lengths(
    arguments: tuple[str, ...], align: str, write: Callable[..., str], run: Run, make_checkpoint: Any, tmp_path: Path
) -> None:
    """Three implementations agree on a padded batch, and a single prompt gets what it gets in the batch."""
    lines = [
        {"prompt": f"{'Well, ' * (i % 3)}after {i} comes", "answer": f" {i + 1}" + " apples" * (i % 2)}
        for i in range(40)
    ]
    path, out = write(lines), tmp_path / "m.onnx"
    given = ("--task", path, "--model", make_checkpoint(), "--out", out, "--force", "--alpha", "0.001", "--json")
    manifest = json.loads(run.succeeds(*given, *arguments))
    assert manifest["circuit"]["align"] == align and list(manifest["onnx"]["inputs"]) == ["input_ids", "attention_mask"]
    test = load_task(path, load_model(make_checkpoint()).tokenizer).test
    assert test.mask is not None
    session = open_session(out)
    together = run_logits(session, test.input_ids.numpy(), test.mask.numpy())
    for row in range(5):
        alone = run_logits(session, test.input_ids[row : row + 1, test.mask[row]].numpy())
        torch.testing.assert_close(
            torch.from_numpy(alone)[0, -1], torch.from_numpy(together)[row, -1], rtol=1e-4, atol=1e-4
        )
    assert "is exact" in run.succeeds("verify", out)


@pytest.mark.parametrize("split", ["selection", "test"])
def test_padding_does_not_change_what_the_dense_model_gets(split: str, write: Callable[..., str], bundled: Any) -> None:
    lines = [{"prompt": f"{'Well, ' * (i % 4)}after {i} comes", "answer": f" {i + 1}"} for i in range(40)]
    data = getattr(load_task(write(lines), bundled.tokenizer), split)
    found = bundled.dense.answer_logits(data.input_ids, data.mask, 1)
    for row, mask in enumerate(data.mask):
        alone = bundled.dense.answer_logits(data.input_ids[row : row + 1, mask])
        torch.testing.assert_close(found[row], alone[0], rtol=1e-4, atol=1e-4)


def test_a_template_and_a_table_make_a_file(run: Run, tmp_path: Path, bundled: LanguageModel) -> None:
    table, out = tmp_path / "fill.csv", tmp_path / "made.jsonl"
    table.write_text("\n".join(["i,next,split,note", *(f"{i},{i + 1},,n" for i in range(32))]))
    given = ("make-data", "--fill", table, "--out", out, "--template", "{{The}} number after {i} is")
    text = run.succeeds(*given, "--answer", " {next}")
    assert "wrote 32 prompts" in text and f"check-data {out}" in text
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[3] == {"prompt": "{The} number after 3 is", "answer": " 4"}
    assert len(load_task(str(out), bundled.tokenizer).test) == 16
    run.fails(3, "--force", *given, "--answer", " {next}")
    run.succeeds(*given, "--answer", " {next}", "--force")
    table.write_text("x,answers,choices,split\nred, a| b, a| b| c,test\n")
    assert json.loads(fill_template("Say {x}", table)) == {
        "prompt": "Say red", "answers": [" a", " b"], "choices": [" a", " b", " c"], "split": "test",
    }  # fmt: skip


BAD_FILLS: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    "no such column": (
        "a,answer\n1, x\n", ("{b} is",), 2,
        r"--template has the slot \{b\}, but .* has the columns a, answer",
    ),
    "no slot": ("a,answer\n1, x\n", ("nothing",), 2, r"has no slot; write one as a column's name, such as \{noun\}"),
    "open brace": ("a,answer\n1, x\n", ("{a is",), 2, "write a brace that is no slot twice"),
    "attribute": ("a,answer\n1, x\n", ("{a.b}",), 2, r"--template has \{a.b\}; a slot is a column's name"),
    "format": ("a,answer\n1, x\n", ("{a:>10}",), 2, "a slot is a column's name and nothing else"),
    "no answer": ("a\n1\n", ("{a} is",), 2, r"no answers: give --answer, .*or a column 'answer' in"),
    "answer's slot": ("a\n1\n", ("{a} is", "--answer", " {b}"), 2, r"--answer has the slot \{b\}"),
    "empty cell": ("a,answer\n1, x\n, y\n", ("{a} is",), 3, "row 3: the cell of 'a' is empty; fill it"),
    "no rows": ("a,answer\n", ("{a} is",), 3, "there is no row under the first line; add one"),
    "uneven row": ("a,answer\n1\n", ("{a} is",), 3, "row 2: 1 cell under 2 columns"),
    "no .jsonl": ("a,answer\n1, x\n", ("{a} is", "--out", "my.json"), 2, "give a name that ends in .jsonl"),
    "no .csv": ("a,answer\n1, x\n", ("{a} is", "--fill", "fill.txt"), 3, "fill.txt: its name must end in .csv"),
    "no table": ("a,answer\n1, x\n", ("{a} is", "--fill", "none.csv"), 3, "none.csv: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILLS)
def test_a_bad_template_or_table_is_refused(name: str, run: Run, tmp_path: Path) -> None:
    table, arguments, code, message = BAD_FILLS[name]
    (tmp_path / "fill.csv").write_text(table)
    given = ("make-data", "--fill", tmp_path / "fill.csv", "--out", tmp_path / "my.jsonl", "--template", *arguments)
    run.fails(code, message, *given)
    assert [path.name for path in tmp_path.iterdir()] == ["fill.csv"]


def test_a_file_without_selection_lines_lends_some_of_its_patching_lines(
    write: Callable[..., str], bundled: LanguageModel
) -> None:
    lines = split_lines(patching=120, test=30)
    data = load_task(write(lines), bundled.tokenizer, sizes=SplitSizes(200, 200, 200))
    assert [len(data.patching), len(data.selection), len(data.test)] == [108, 12, 30]
    shown = [set(map(tuple, part.input_ids.tolist())) for part in (data.patching, data.selection, data.test)]
    assert not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2])
    assert any("no line is of the set selection: 12 of the set patching are" in note for note in data.notes)
    assert not any("lines of the set patching" in note for note in data.notes)
    again = load_task(write(lines), bundled.tokenizer, sizes=SplitSizes(200, 200, 200))
    assert torch.equal(again.selection.input_ids, data.selection.input_ids)
    with pytest.raises(DataFileError, match="the selection set needs at least 8 prompts, 0 lines have it"):
        load_task(write(split_lines(patching=60, test=30)), bundled.tokenizer)
