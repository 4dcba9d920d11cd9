"""What one set of a file tells of another: found by what the model is given, kept in one set, refused or warned of."""

from __future__ import annotations

import json
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from conftest import Run
from tiers import THOROUGH, as_slow

from exporter.loading.load import LanguageModel
from exporter.tasks import (
    DEFAULT_SIZES,
    TASKS,
    DataFileError,
    SplitSizes,
    TaskData,
    Tokenizer,
    load_task,
    read_task_file,
)
from exporter.tasks.allotment import allot_groups
from exporter.tasks.dataset import Dataset
from exporter.tasks.file import FileTask
from exporter.tasks.twins import Twin, fold_text, group_twins

Rows = list[dict[str, Any]]
COLOURS = (" red", " blue", " green")
TURNS = ("patching", "test", "selection", "selection", "test", "patching", "selection", "selection")
"""Sets for pairs of lines: of four pairs two are parted, each way round."""


@pytest.fixture
def read(tmp_path: Path, bundled: LanguageModel) -> Callable[..., FileTask]:
    """A function that writes rows into a file and reads it as a task."""

    def read(
        rows: Rows, *, seed: int = 0, sizes: SplitSizes = DEFAULT_SIZES, tokenizer: Tokenizer | None = None
    ) -> FileTask:
        path = tmp_path / "my.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_task_file(path, tokenizer or bundled.tokenizer, seed=seed, sizes=sizes)

    return read


def pick_colour(i: int) -> str:
    """Not in step with any way in which sets are named in turn."""
    return COLOURS[i // 5 % 3]


def colour_rows(n: int = 60, opening: str = "The colour of number") -> Rows:
    return [{"prompt": f"{opening} {i} is called", "answer": pick_colour(i)} for i in range(n)]


def counting_rows(n: int = 30) -> Rows:
    """Pairs of lines: the second's prompt is the first's with an answer's first token in place."""
    return [
        row
        for i in range(n)
        for row in (
            {"prompt": f"Count {i} then", "answer": " one two"},
            {"prompt": f"Count {i} then one", "answer": " two"},
        )
    ]


def name_sets(rows: Rows, names: Sequence[str]) -> Rows:
    return [row | {"split": names[i % len(names)]} for i, row in enumerate(rows)]


def contexts_by_set(data: TaskData) -> dict[tuple[int, ...], set[str]]:
    """Everything that the model is asked with, at every answer position, and the sets that hold it."""
    found: dict[tuple[int, ...], set[str]] = defaultdict(set)
    sets: dict[str, Dataset] = {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}
    for name, dataset in sets.items():
        masks = torch.ones_like(dataset.input_ids).bool() if dataset.mask is None else dataset.mask
        for row, mask, steps in zip(dataset.input_ids, masks, dataset.counted.sum(dim=1).tolist(), strict=True):
            ids = tuple(row[mask].tolist())
            for place in range(steps):
                found[ids[: len(ids) - place]].add(name)
    return found


def is_disjoint(data: TaskData) -> bool:
    return all(len(names) == 1 for names in contexts_by_set(data).values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "sizes", [SplitSizes(30, 40, 50, 20), *map(as_slow, (DEFAULT_SIZES, SplitSizes(400, 300, 600, 300)))]
)
def test_built_in_tasks_have_no_leak(task: str, sizes: SplitSizes, bundled: LanguageModel) -> None:
    for seed in range(3):
        for parameters in TASKS[task].variants:
            data = load_task(task, bundled.tokenizer, seed=seed, sizes=sizes, **parameters)
            assert is_disjoint(data)
            texts: dict[str, set[str]] = defaultdict(set)
            for ids, names in contexts_by_set(data).items():
                texts[fold_text(bundled.tokenizer.decode(list(ids)))[0]] |= names
            assert all(len(names) == 1 for names in texts.values())


def test_the_check_of_this_file_sees_a_leak(bundled: LanguageModel) -> None:
    data = load_task("acronym", bundled.tokenizer, sizes=SplitSizes(20, 20, 20, 8), letters=3)
    shortened = Dataset(data.test.input_ids[:, :-1], data.test.answer_ids[:, :-1])
    assert not is_disjoint(TaskData("acronym", {}, shortened, data.selection, data.test, {}))


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_inside_an_answer_stays_with_it(seed: int, read: Callable[..., FileTask]) -> None:
    found = read(counting_rows(), seed=seed)
    assert is_disjoint(found.data)
    sizes = {name: len(rows) for name, rows in found.examples.items()}
    assert sum(sizes.values()) == 60 and found.unused == 0
    assert all(abs(sizes[name] - size) <= 1 for name, size in {"patching": 15, "selection": 15, "test": 30}.items())
    again = read(counting_rows(), seed=seed)
    assert [e.record for rows in again.examples.values() for e in rows] == [
        e.record for rows in found.examples.values() for e in rows
    ]


LEAKS: dict[str, tuple[Rows, str]] = {
    "two steps": (
        name_sets(counting_rows(), ["patching", "test", "selection", "selection"]),
        "line 2: the prompt of line 1 again, with an answer's first tokens in place .* there in patching and here in "
        "test: a leak; put both into one set",
    ),
    "the longer answer later": (
        name_sets(counting_rows()[::-1], ["patching", "test", "selection", "selection"]),
        "line 2: the prompt of line 1 again, with an answer's first tokens",
    ),
    "three steps in": (
        [
            *name_sets(colour_rows(), ["patching", "selection", "test"]),
            {"prompt": "Say it:", "answer": " red blue green red", "split": "test"},
            {"prompt": "Say it: red blue green", "answer": " blue", "split": "patching"},
        ],
        "line 62: the prompt of line 61 again, with an answer's first tokens",
    ),
    "an unseen set": (
        [*name_sets(colour_rows(), ["patching", "selection", "test"]), colour_rows()[7] | {"split": "ood:other"}],
        "line 61: the prompt of line 8 again, there in selection and here in ood:other: a leak; take one of them out",
    ),
    "an unseen set and lines without one": (
        [*counting_rows(), {"prompt": "Count 7 then one", "answer": " two", "split": "ood"}],
        "line 61: the prompt of line 15 again, with .* there in no named set and here in ood:ood",
    ),
    "two unseen sets": (
        [*colour_rows(), *({"prompt": "Say", "answer": " red", "split": f"ood:{name}"} for name in "ab")],
        "line 62: the prompt of line 61 again, there in ood:a and here in ood:b",
    ),
    "the first of several is in the same set": (
        [
            *name_sets(colour_rows(), ["patching", "selection", "test"]),
            *(colour_rows()[0] | {"split": name} for name in ("patching", "test")),
        ],
        "line 62: the prompt of line 1 again, there in patching and here in test",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_between_named_sets_is_refused(name: str, read: Callable[..., FileTask]) -> None:
    rows, message = LEAKS[name]
    with pytest.raises(DataFileError, match=message):
        read(rows)


def test_ids_with_and_without_an_answer_in_place_are_the_same(
    read: Callable[..., FileTask], bundled: LanguageModel
) -> None:
    ids = bundled.tokenizer.encode("Count 3 then one")
    rows = [row | {"split": "test"} for row in counting_rows()] + name_sets(colour_rows(), ["patching", "selection"])
    with pytest.raises(DataFileError, match="line 121: the prompt of line 7 again, with"):
        read([*rows, {"prompt_ids": ids, "answer": " two", "split": "patching"}])


WAYS: dict[str, Callable[[str], str]] = {
    "double space": lambda text: text.replace(" ", "  ", 1),
    "leading space": lambda text: f" {text}",
    "trailing line break": lambda text: f"{text}\n",
    "tab": lambda text: text.replace(" ", "\t", 1),
    "line break": lambda text: text.replace(" ", "\r\n", 1),
    "no-break space": lambda text: text.replace(" ", "\u00a0", 1),
    "ideographic space": lambda text: text.replace(" ", "\u3000", 1),
    "next line": lambda text: text.replace(" ", "\x85", 1),
    "line separator": lambda text: text.replace(" ", "\u2028", 1),
    "paragraph separator": lambda text: text.replace(" ", "\u2029", 1),
    "zero-width space in a word": lambda text: text.replace("e", "e\u200b", 1),
    "zero-width space for a space": lambda text: text.replace(" ", "\u200b", 1),
    "word joiner": lambda text: text.replace("e", "e\u2060", 1),
    "soft hyphen": lambda text: text.replace("e", "e\u00ad", 1),
    "byte order mark": lambda text: f"\ufeff{text}",
    "direction mark": lambda text: f"\u200e{text}",
    "variation selector": lambda text: f"{text}\ufe0f",
    "escape character": lambda text: f"\x1b{text}",
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: text.replace("c", "\uff43"),
    "ligature": lambda text: text.replace("fi", "\ufb01"),
    "capitals": str.upper,
    "sharp s": lambda text: text.replace("ss", "ß"),
}


@pytest.mark.parametrize("way", WAYS)
def test_twins_that_look_the_same_go_together(way: str, read: Callable[..., FileTask]) -> None:
    rows = colour_rows(40, "Le café classifié du numéro")
    twins = [row | {"prompt": WAYS[way](row["prompt"])} for row in rows]
    assert twins[0]["prompt"] != rows[0]["prompt"]
    found = read(rows + twins)
    assert {len(found.examples[name]) for name in ("patching", "selection")} == {20} and found.unused == 0
    assert len(found.near) == 40 and not any(pair.leaks for pair in found.near)
    where = {example.record.line: name for name, examples in found.examples.items() for example in examples}
    assert all(where[line] == where[line + 40] for line in range(1, 41))
    assert not [note for note in found.data.notes if "two sets" in note]
    named = read(name_sets(rows, ["patching", "selection"]) + name_sets(twins, ["test"]))
    assert [warning.line for warning in named.warnings if "nearly the prompt of line" in warning.message] == [
        *range(41, 81)
    ]
    note = next(note for note in named.data.notes if "two sets" in note)
    assert "line 1 (patching) and line 41 (test), line 2 (selection)" in note and "37 more" in note


def test_a_twin_of_a_prompt_inside_an_answer(read: Callable[..., FileTask]) -> None:
    rows = counting_rows(20)
    rows[1::2] = [row | {"prompt": row["prompt"].replace("then one", "then  ONE")} for row in rows[1::2]]
    found = read(rows)
    assert {pair.kind for pair in found.near} == {"text"} and len(found.near) == 20
    assert not any(pair.leaks for pair in found.near)
    assert len(read(name_sets(rows, TURNS)).warnings) == 10


def test_padded_prompts_are_compared_without_padding(read: Callable[..., FileTask]) -> None:
    rows = [row | {"prompt": "Well, well: " * (i // 2 % 3) + row["prompt"]} for i, row in enumerate(counting_rows())]
    found = read(rows)
    assert found.data.test.mask is not None and len(found.near) == 30 and is_disjoint(found.data)


def test_given_ids_and_padding_are_compared_by_their_text(
    read: Callable[..., FileTask], bundled: LanguageModel
) -> None:
    rows, encode = colour_rows(40), bundled.tokenizer.encode
    pad = bundled.tokenizer.eos_token_id
    twins = [{"prompt_ids": [pad, pad, *encode(row["prompt"])], "answer": row["answer"]} for row in rows]
    found = read(rows + twins)
    assert len(found.near) == 40 and not any(pair.leaks for pair in found.near)


def test_a_prompt_with_its_answer_is_near_and_a_chain_of_them_is_parted(read: Callable[..., FileTask]) -> None:
    pairs = [
        row
        for i in range(30)
        for row in (
            {"prompt": f"Item {i} is", "answer": pick_colour(i)},
            {"prompt": f"Item {i} is{pick_colour(i)}", "answer": " and"},
        )
    ]
    found = read(pairs)
    assert [pair.kind for pair in found.near] == ["answer"] * 30 and not any(pair.leaks for pair in found.near)
    assert "answer" in read(name_sets(pairs, TURNS)).data.notes[0]
    chain = [{"prompt": " ".join(map(str, range(1, i + 1))), "answer": f" {i + 1}"} for i in range(1, 41)]
    found = read(chain)
    assert [len(found.examples[name]) for name in ("patching", "selection", "test")] == [10, 10, 20]
    assert found.warnings and "with its answer" in found.data.notes[0]


def test_groups_that_no_cut_allows_are_told(read: Callable[..., FileTask]) -> None:
    twins = [{"prompt": f"The{' ' * (i + 1)}cat is", "answer": pick_colour(i)} for i in range(40)]
    with pytest.raises(
        DataFileError,
        match=r"patching set needs at least 8 prompts, 40 different prompts give it 0, .* leaves 1 groups "
        r"\(lines 1, 2, 3, 4 and 36 more are the same.* give each its split",
    ):
        read(twins)
    assert len(read(name_sets(twins, ["patching", "selection", "test"])).warnings) == 39
    found = read(twins + colour_rows(40))
    assert [len(found.examples[name]) for name in ("patching", "selection", "test")] == [20, 20, 40]


@hypothesis.given(
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
    st.tuples(*[st.integers(1, 40)] * 3),
    st.booleans(),
)
def test_groups_are_never_parted(counts: list[int], sizes: tuple[int, int, int], level: bool) -> None:
    rows = iter(range(10_000))
    groups = [[next(rows) for _ in range(count)] for count in counts]
    wanted = dict(zip(("patching", "selection", "test"), sizes, strict=True))
    fewest = {name: min(8, size) for name, size in wanted.items()}
    sets = allot_groups(groups, wanted, fewest, level=level)
    where = {row: name for name, found in sets.items() for row in found}
    assert len(where) == sum(map(len, sets.values()))
    assert all(len(found) <= wanted[name] for name, found in sets.items())
    assert all(len({where[row] for row in group if row in where}) <= 1 for group in groups)
    if max(counts) == 1:  # as lines without twins have always been cut
        n, order = len(groups), [group[0] for group in groups]
        first, second = (min(wanted[name], n // 4) for name in ("patching", "selection"))
        assert sets["patching"] == order[:first]
        assert sets["selection"] == order[first : first + second]
        assert sets["test"] == order[first + second :][: wanted["test"]]


@pytest.mark.parametrize(
    ("counts", "level", "expected"),
    [
        ([2] * 30, False, [16, 14, 30]),
        ([50] + [1] * 50, False, [25, 25, 50]),
        ([60] + [1] * 40, False, [20, 20, 60]),
        ([7] * 6, True, [14, 14, 14]),
        ([5] * 200, False, [250, 250, 500]),
    ],
)
def test_sizes_come_near_to_what_is_wanted(counts: list[int], level: bool, expected: list[int]) -> None:
    rows = iter(range(10_000))
    groups = [[next(rows) for _ in range(count)] for count in counts]
    sets = allot_groups(
        groups, {"patching": 250, "selection": 250, "test": 500}, dict.fromkeys(("patching", "selection", "test"), 8),
        level=level,
    )  # fmt: skip
    assert [len(sets[name]) for name in ("patching", "selection", "test")] == expected


def test_twins_of_twins_are_one_group() -> None:
    twins = [Twin(3, 4, "text"), Twin(0, 2, "ids"), Twin(2, 4, "answer")]
    assert group_twins(6, twins) == [0, 1, 0, 0, 0, 5]


def test_a_report_names_the_lines(run: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    choices = {"choices": list(COLOURS)}
    rows = [row | choices for row in name_sets(colour_rows(), ["patching", "selection", "test"])]
    rows += [rows[2], rows[0] | {"prompt": rows[0]["prompt"].replace(" ", "  "), "split": "test"}]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("check-data", path, "--model", make_checkpoint())
    _, out, _ = run.all(*given, "--json")
    report = json.loads(out)
    assert report["duplicates"] == 1 and report["repeated"] == [[61, 3]]
    assert [pair["lines"] for pair in report["near"]] == [[1, 62]]
    assert report["near"][0]["sets"] == ["patching", "test"]
    near, *others = report["warnings"]
    assert near.startswith("line 62: nearly the prompt of line 1 (alike")
    assert all(warning.startswith("a bag of words does the job") for warning in others)  # better than random weights
    _, out, _ = run.all(*given)
    assert "line 61 is line 3" in out and "1 (line 62), in other sets than those" in out
    assert "warning: line 62: nearly the prompt of line 1" in out


def test_thousands_of_lines_are_compared_quickly(read: Callable[..., FileTask], bundled: LanguageModel) -> None:
    """Comparing each with each would take hours; this is a small multiple of what tokenising takes by itself.

    Both are measured in this thread's own time: a busy machine changes neither.
    """
    rows = [
        {"prompt": f"There are {i} boxes, and here", "answer": f" {i % 97} and more"}
        for i in range(10_000 if THOROUGH else 3000)
    ]
    start = time.thread_time()
    for row in rows:
        bundled.tokenizer.encode(row["prompt"] + row["answer"], add_special_tokens=False)
    once = time.thread_time() - start
    start = time.thread_time()
    assert read(rows).near == []
    assert time.thread_time() - start < 30 * once
