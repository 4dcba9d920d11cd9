"""Answers say what was written, with SentencePiece as with GPT-2's tokenizer; what is put twice before is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Run
from tokenizer_files import SPACE, byte_level, make_template, sentencepiece, word_level, write_files

from exporter.errors import InputError
from exporter.loading.sources.tokenizer import load_tokenizer
from exporter.tasks import DEFAULT_SIZES, load_task, read_task_file
from exporter.tasks.encoding import Encoder
from exporter.tasks.lines import DataFileError, LineError
from exporter.tasks.records import read_records
from exporter.tasks.spaces import PromptSpace, draw_prompts
from exporter.tasks.task import NO_LIMITS

BOS = make_template(first="<s>", first_id=1)
Make = Callable[[], dict[str, Any]]


def load(folder: Path, data: dict[str, Any], **settings: Any) -> Any:
    tokenizer = load_tokenizer(write_files(folder / "m", data, **settings), SimpleNamespace(vocab_size=10**9))
    assert tokenizer is not None
    return tokenizer


def encode(folder: Path, tokenizer: Any, **line: Any) -> tuple[Any, Encoder]:
    (folder / "t.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    records, problems, _ = read_records(folder / "t.jsonl")
    assert not problems
    encoder = Encoder(tokenizer, NO_LIMITS)
    return encoder.encode(records[0]), encoder


LOWER = {"type": "Lowercase"}
SPECIAL = {"content": "<y>", "single_word": False, "normalized": False, "special": True}


def lstripped() -> dict[str, Any]:
    data = byte_level()
    size = len(data["model"]["vocab"])
    data["added_tokens"] += [SPECIAL | {"id": size, "lstrip": True, "rstrip": True}]
    return data


REFUSED: dict[str, tuple[Make, dict[str, Any], dict[str, Any], str]] = {
    "sticks": (
        sentencepiece, {}, {"answer": "cat"}, "'cat' is 3 tokens.*sticks to the prompt's last word: write ' cat'"
    ),
    "sticks behind a full stop": (
        sentencepiece, {}, {"prompt": "the dog.", "answer": "cat"}, "'cat' is .*sticks .*write ' cat', which is one"
    ),
    "sticks, of two tokens": (
        sentencepiece, {}, {"answer": "catsits"}, "'catsits' is 7 tokens, .*sticks .*write ' catsits', which is 5"
    ),
    "sticks, Metaspace": (lambda: sentencepiece(metaspace=True), {}, {"answer": "cat"}, "sticks .*write ' cat'"),
    "sticks, among choices": (
        sentencepiece, {}, {"answer": "cat", "choices": ["cat", " dog"]}, "with choices each must be one: write ' cat'"
    ),
    "sticks, GPT-2's": (byte_level, {}, {"answer": "cat"}, "sticks .*write ' cat', which is one"),
    "merges": (sentencepiece, {}, {"prompt": "the dog ", "answer": "cat"}, "merge: .*move the space"),
    "unknown": (word_level, {"unk_token": "<unk>"}, {"answer": " bird"}, "no token for ' bird': it becomes '<unk>'"),
    "unknown, among others": (
        word_level, {"unk_token": "<unk>"}, {"answers": [" cat", " bird"]}, "no token for ' bird'"
    ),
    "unknown, and none for it": (
        lambda: word_level(model={"unk_token": "<none>"}), {}, {"answer": " bird"}, "the tokenizer cannot read .* bird"
    ),
    "lower case": (
        lambda: byte_level(normalizer=LOWER), {}, {"prompt": "The dog", "answer": " Paris"},
        "reads the answer ' Paris' as ' paris'; write that",
    ),
    "lower case, prompt alike": (
        lambda: byte_level(normalizer=LOWER), {}, {"answer": " Paris"}, "reads the answer ' Paris' as ' paris'"
    ),
    "compatibility form": (
        lambda: byte_level(normalizer={"type": "NFKC"}), {}, {"answer": " ca\uff54"}, "reads the answer .* as ' cat'"
    ),
    "accents": (
        lambda: byte_level(normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}),
        {}, {"answer": " c\u00e0t"}, "reads the answer .* as ' cat'",
    ),
    "a mark for a space": (sentencepiece, {}, {"answer": f"{SPACE}cat"}, "reads the answer .* as ' cat'"),
    "a new line is lost": (
        lambda: byte_level(normalizer={"type": "Replace", "pattern": {"String": "\n"}, "content": " "}),
        {}, {"answer": "\ncat"}, "reads the answer .*ncat' as ' cat'",
    ),
    "a space is swallowed": (lstripped, {}, {"answer": " <y>"}, "reads the answer ' <y>' as '<y>'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_is_not_what_was_written_is_refused(name: str, tmp_path: Path) -> None:
    make, settings, line, message = REFUSED[name]
    with pytest.raises(LineError, match=message):
        encode(tmp_path, load(tmp_path, make(), **settings), **({"prompt": "the dog"} | line))


TAKEN: dict[str, tuple[Make, dict[str, Any], int]] = {
    "a word": (sentencepiece, {"answer": " cat"}, 1),
    "a word, Metaspace": (lambda: sentencepiece(metaspace=True), {"answer": " cat"}, 1),
    "a word in GPT-2's": (byte_level, {"answer": " cat"}, 1),
    "behind a bracket": (sentencepiece, {"prompt": "the (", "answer": "cat"}, 3),
    "bytes": (sentencepiece, {"answer": " \u00e9"}, 3),
    "a new line": (byte_level, {"answer": "\nthe"}, 2),
    "a known word": (word_level, {"answer": " cat"}, 1),
    "the unknown token itself": (word_level, {"answer": " <unk>"}, 1),
    "behind ids": (sentencepiece, {"prompt": None, "prompt_ids": [1, 5], "answer": "cat"}, 1),
    "lower case": (lambda: byte_level(normalizer=LOWER), {"prompt": "The dog", "answer": " paris"}, 1),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_answer_as_it_was_written_is_taken(name: str, tmp_path: Path) -> None:
    make, line, n_tokens = TAKEN[name]
    line = {name: value for name, value in ({"prompt": "the dog"} | line).items() if value is not None}
    example, encoder = encode(tmp_path, load(tmp_path, make(), unk_token="<unk>"), **line)
    assert len(example.steps) == n_tokens
    assert not encoder.describe_doubts()


def write_lines(folder: Path, start: str = "") -> Path:
    words = ["the", "cat", "sits", "on", "a", "mat", "and", "dog", "runs", "to", "old", "tree"]
    pairs = [(a, b) for a in words for b in words if a != b]
    rows = [{"prompt": f"{start}{a} {b}", "answer": f" {words[i % 2 + 1]}"} for i, (a, b) in enumerate(pairs)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "t.jsonl"


@pytest.mark.parametrize(("make", "template"), [(byte_level, BOS), (word_level, BOS), (sentencepiece, None)])
def test_what_is_put_before_a_prompt_twice_is_warned_of(make: Make, template: Any, tmp_path: Path) -> None:
    changes = {} if template is None else {"post_processor": template}
    tokenizer = load(tmp_path, make(**changes), bos_token="<s>")  # type: ignore[call-arg]
    found = read_task_file(write_lines(tmp_path, "<s> "), tokenizer, sizes=DEFAULT_SIZES)
    assert found.data.test.input_ids[0, :2].tolist() == [1, 1]
    (note,) = found.data.notes
    assert note.startswith("132 prompts begin (the first on line 1) with '<s>', which is put before each prompt anyway")
    assert [str(warning) for warning in found.warnings] == [note]
    assert not read_task_file(write_lines(tmp_path), tokenizer, sizes=DEFAULT_SIZES).data.notes


def test_unknown_words_and_stuck_words_are_warned_of(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, word_level(), unk_token="<unk>")
    _, encoder = encode(tmp_path, tokenizer, prompt="the bird", answer=" cat")
    assert encoder.describe_doubts() == [
        "line 1: 1 prompt has text that the tokenizer has no token for: the model reads its unknown token there"
    ]
    _, encoder = encode(tmp_path, load(tmp_path, byte_level()), prompt="a mat", answer="the")
    (doubt,) = encoder.describe_doubts()
    assert "1 answer sticks to the prompt's last word, such as 'the'; " in doubt and "write ' the'" in doubt
    _, encoder = encode(tmp_path, load(tmp_path, byte_level()), prompt="A MAT (M", answer="A")
    assert not encoder.describe_doubts()


def test_a_tasks_prompts_are_kept_as_text_with_their_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(post_processor=BOS))
    data = load_task(str(write_lines(tmp_path)), tokenizer)
    assert len(data.readings) == 64
    assert all(tuple(tokenizer.encode(text)) == ids for text, ids in data.readings)


def test_a_built_in_task_begins_as_the_tokenizer_does(tmp_path: Path, bundled: Any) -> None:
    """`run` puts a first token before each prompt, so the search has it too."""

    class Space:
        capacities = (3,)
        input_ids = answer_ids = frozenset[int]()

        def prompt(self, stratum: int, index: int) -> Any:
            from exporter.tasks.prompts import Prompt

            text = ["the cat", "the dog", "a mat"][index]
            return Prompt(text, (7, *tokenizer.encode(text, add_special_tokens=False)), (5,), lead=1)

    space: PromptSpace = Space()  # type: ignore[assignment]  # sets that nobody asks for
    tokenizer = load(tmp_path, byte_level(post_processor=BOS))
    assert {prompt.ids[0] for prompt in draw_prompts(tokenizer, space, 3, seed="0", task="x")} == {1}
    tokenizer = load(tmp_path, byte_level())
    assert {prompt.ids[0] for prompt in draw_prompts(tokenizer, space, 3, seed="0", task="x")} == {7}
    data = load_task("greater-than", bundled.tokenizer)
    assert all(tuple(bundled.tokenizer.encode(text)) == ids for text, ids in data.readings)


def test_a_pattern_that_runs_wild_later_is_bad_input(tmp_path: Path) -> None:
    from exporter.errors import refuse_panics

    class PanicException(BaseException):
        """As the tokenizers library raises it."""

    def panic() -> None:
        with refuse_panics("the text cannot be read"):
            raise PanicException("retry-limit-in-match over")

    with pytest.raises(InputError, match=r"the text cannot be read \(retry-limit"):
        panic()


def test_check_data_and_run_say_so(tmp_path: Path, run: Run, make_checkpoint: Callable[..., Path]) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(make_checkpoint(vocab_size=400, bos_token_id=1, eos_token_id=0), folder)
    write_files(folder, byte_level(post_processor=BOS), model_type="gpt2", bos_token="<s>")
    config = json.loads((make_checkpoint(vocab_size=400, bos_token_id=1, eos_token_id=0) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    lines = write_lines(tmp_path, "<s>")
    code, out, _ = run.all("check-data", lines, "--model", folder)
    assert code in (0, 3)  # a random model may answer by luck
    assert "warning: 132 prompts begin (the first on line 1) with '<s>'" in out
    circuit = tmp_path / "c.json"
    circuit.write_text(json.dumps({"heads": [[0, 1]], "mlps": [1], "mean": "global"}))
    code, out, err = run.all(
        "--task", lines, "--model", folder, "--circuit", circuit, "--force", "--bundle", tmp_path / "b", "--json"
    )
    assert code == 0, err
    assert any("which is put before each prompt anyway" in note for note in json.loads(out)["notes"])
    code, out, err = run.all("run", tmp_path / "b", "<s>the cat", "--json", "--max-new-tokens", "1")
    assert (code, json.loads(out)["prompt_ids"][:2]) == (0, [1, 1])
    assert "the prompt begins with <s>, which is put before it anyway" in err
    code, out, err = run.all("run", tmp_path / "b", "the cat", "--json", "--max-new-tokens", "1")
    assert (code, err, json.loads(out)["prompt_ids"][0], json.loads(out)["warnings"]) == (0, "", 1, [])


def test_a_file_with_stuck_answers_is_refused_line_by_line(tmp_path: Path) -> None:
    rows = [{"prompt": f"the {word}", "answer": "cat"} for word in ("dog", "mat", "tree")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataFileError) as caught:
        load_task(str(tmp_path / "t.jsonl"), load(tmp_path, sentencepiece()))
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]
    assert all("write ' cat'" in problem.message for problem in caught.value.problems)
