"""A gradual search that is cut short goes on to the same bytes, and what does not fit is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tiny import make_model, make_prompts
from untrusted import hash_tree

from exporter.circuit import Ablation, Circuit, SearchRecord, SizeStep
from exporter.errors import InputError
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery
from exporter.search import gradual, rounds
from exporter.search.checkpoints import load_checkpoint, read_prior, save_checkpoint
from exporter.search.find import search_surgery
from exporter.search.journal import Journal
from exporter.search.rules import Budget
from exporter.search.state import Packed, cut_state, pack_state, start_state, unpack_state
from exporter.search.walk import Walk

KEY = {"search": "gradual", "model": "abc"}
Files = dict[str, bytes]


class Interrupted(BaseException):
    """A kill."""


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well it is healed is not asked here."""
    monkeypatch.setattr(rounds, "LEAST_ROUND", 3)
    monkeypatch.setattr(rounds, "MOST_STEPS", 6)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx.journal"


def search(
    journal: Path, stop: int | None = None, *, family: str = "gpt2", resume: bool = True, **options: Any
) -> tuple[Surgery, SearchRecord]:
    """A search that is killed after so many sizes."""
    model = make_model(family, n_layers=3, n_heads=4, d_mlp=24)
    sizes: list[SizeStep] = []

    def note(step: SizeStep, _share: float) -> None:
        sizes.append(step)
        if len(sizes) == stop:
            raise Interrupted

    with Journal(journal, KEY, resume=resume) as opened:
        return search_surgery(
            model,
            make_prompts(90, 6, seed=1),
            make_prompts(20, 6, seed=2),
            on_size=note,
            on_checkpoint=partial(save_checkpoint, opened),
            **({"rule": Budget(max_kl=1.2)} | options),
            **read_prior(opened, gradual=True),
        )


def interrupt(journal: Path, stop: int, **options: Any) -> None:
    with pytest.raises(Interrupted):
        search(journal, stop, **options)


def read_folder(journal: Path) -> Files:
    return {path.name: path.read_bytes() for path in journal.parent.iterdir()}


def find_weights(journal: Path) -> list[Path]:
    return sorted(journal.parent.glob("m.onnx.journal-*.safetensors"))


def get_last(journal: Path) -> dict[str, Any]:
    return json.loads(journal.read_text().splitlines()[-1][17:])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("llama", {"rule": Budget(max_params="20%"), "teacher": "both", "seed": 3}),
        ("llama", {"rule": Budget(max_kl=0.5), "heal": "none", "ablation": Ablation(by="global")}),
        ("gpt2", {"rule": Budget(max_params="12%"), "heal": "none"}),
    ],
    ids=["healed", "llama healed", "llama", "parameters"],
)
def test_it_ends_with_the_same_bytes_wherever_it_was_cut_short(
    family: str, options: dict[str, Any], tmp_path: Path, journal: Path
) -> None:
    surgery, record = search(journal, family=family, **options)
    assert not list(tmp_path.iterdir())
    for stop in range(1, len(record.path) + 1):
        interrupt(journal, stop, family=family, resume=stop > 1, **options)  # each goes on one size from the last
        last = get_last(journal)
        needed = {network["sha256"][:16] for network in (last["base"], last["best"], last["tutor"]) if network}
        assert {path.name[-28:-12] for path in find_weights(journal)} == needed
        assert len(read_folder(journal)) == 1 + len(needed)
    assert len(record.path) > 2
    again, same = search(journal, family=family, **options)
    assert same == record
    assert again.sha256 == surgery.sha256
    assert not list(tmp_path.iterdir())


def test_a_walk_that_turned_back_is_gone_on_with(journal: Path) -> None:
    """After a size that did not keep the budget, the next cut is from another network than the last."""
    surgery, record = search(journal)
    failed = next(number for number, step in enumerate(record.path, start=1) if step.steps and not step.kept)
    interrupt(journal, failed)
    assert get_last(journal)["walk"]["failures"] == 1
    again, same = search(journal)
    assert (again.sha256, same) == (surgery.sha256, record)


def test_sizes_are_not_tried_again(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(journal, 2)
    judged: list[None] = []
    judge = gradual.judge_network
    monkeypatch.setattr(gradual, "judge_network", lambda *a: (judged.append(None), judge(*a))[1])
    interrupt(journal, 2)  # those that it knows
    assert not judged
    interrupt(journal, 3)
    assert judged


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "link":
        (path.parent / "elsewhere").mkdir()
        moved = path.rename(path.parent / "elsewhere" / "w")
        path.symlink_to(moved)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


@pytest.mark.parametrize("how", ["missing", "link", "pipe", "empty", "cut off", "a bit"])
def test_damaged_weights_are_refused_and_left_as_they_are(how: str, tmp_path: Path, journal: Path) -> None:
    interrupt(journal, 2)
    (path,) = find_weights(journal)
    damage(path, how)
    before = hash_tree(tmp_path)
    with pytest.raises(InputError, match=r"start over without --resume$"):
        search(journal)
    assert hash_tree(tmp_path) == before
    if how in ("link", "pipe"):  # what is not ours stays
        with pytest.raises(InputError, match="is left as it is; move it away"):
            search(journal, resume=False)
        path.unlink()
    search(journal, resume=False)
    assert {p.name for p in tmp_path.rglob("*")} == ({"elsewhere", "w"} if how == "link" else set())


def test_what_is_not_ours_is_neither_overwritten_nor_removed(tmp_path: Path, journal: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    names = [f"m.onnx.journal-{digit * 16}.safetensors" for digit in "abcde"]
    (tmp_path / names[0]).symlink_to(tmp_path / "precious")
    (tmp_path / names[1]).write_text("mine")
    os.mkfifo(tmp_path / names[2])
    (tmp_path / names[3]).mkdir()
    (tmp_path / names[4]).hardlink_to(tmp_path / "precious")
    search(journal, resume=False)
    assert {path.name for path in tmp_path.iterdir()} == {"precious", *names}
    assert (tmp_path / "precious").read_text() == "precious"
    for kind in ("file", "link"):
        draft = tmp_path / "m.onnx.journal.partial"
        if kind == "file":
            draft.write_text("mine")
        else:
            draft.symlink_to(tmp_path / "precious")
        with pytest.raises(InputError, match=r"partial is needed for the search's weights, and is left as it is"):
            search(journal, resume=False)
        assert draft.read_text() == ("mine" if kind == "file" else "precious")
        draft.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"precious", *names}


def test_files_that_a_kill_left_go_with_the_next_size_or_a_new_start(tmp_path: Path, journal: Path) -> None:
    """Weights that no line came to name, and the beginning of a file."""
    for resume in (True, False):
        interrupt(journal, 1, resume=False)
        (path,) = find_weights(journal)
        orphan = path.with_name(f"m.onnx.journal-{'f' * 16}.safetensors")
        orphan.write_bytes(path.read_bytes())
        (tmp_path / "m.onnx.journal.partial").write_bytes(b"" if resume else path.read_bytes()[:50])
        interrupt(journal, 2, resume=resume)
        assert set(read_folder(journal)) == {journal.name, *(p.name for p in find_weights(journal))}
        assert len(find_weights(journal)) == 1 and not orphan.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("bad"), OSError(28, "full")])
def test_weights_go_where_the_journal_goes(error: BaseException, tmp_path: Path, journal: Path) -> None:
    for resume in (True, False):
        with pytest.raises(type(error)), Journal(journal, KEY, resume=resume) as opened:
            opened.weights.write({"x": torch.ones(2)})
            raise error
        assert len(list(tmp_path.iterdir())) == (2 if resume else 0)


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"rule": Budget(max_params="12%"), "heal": "none"}  # each size is gone on from
    interrupt(journal, 1, **options)
    before = read_folder(journal)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("exporter.search.weights.os.fsync", fail)
        search(journal, **options)
    assert read_folder(journal) == before


def test_journals_of_the_other_search_are_refused(journal: Path) -> None:
    interrupt(journal, 1)
    before = read_folder(journal)
    with pytest.raises(InputError, match=r"is of a gradual search, and this one is greedy; .* --resume"):
        Journal(journal, {"alpha": 0.1}, resume=True).check()
    with pytest.raises(InputError, match="is of another search: its model is"):
        Journal(journal, KEY | {"model": "x"}, resume=True).check()
    assert read_folder(journal) == before
    journal.unlink()
    with pytest.raises(SystemError), Journal(journal, {"alpha": 0.1}, resume=False):
        raise SystemError
    with pytest.raises(InputError, match=r"is of a greedy search, and this one is gradual; .* --resume"):
        search(journal)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("size", {}), ("walk", {"target": 0.1}), ("walk", None), ("base", {"circuit": {}, "sha256": "../../etc/x"}),
        ("base", {"circuit": {"heads": [[0, 99]], "mlps": "x"}, "sha256": "0" * 64}), ("best", 3),
    ],
)  # fmt: skip
def test_entries_that_nobody_wrote_are_damage(part: str, value: object, journal: Path) -> None:
    interrupt(journal, 1)
    entry = get_last(journal)
    with pytest.raises(SystemError), Journal(journal, KEY, resume=False) as opened:
        opened.add(entry | {part: value})
        raise SystemError
    with Journal(journal, KEY, resume=True) as opened, pytest.raises(InputError, match="is damaged in line 2"):
        load_checkpoint(opened)


def make_packed() -> tuple[Packed, Any]:
    model, prompts = make_model(n_layers=2, n_heads=3), make_prompts(8, 5, seed=1)
    means = compute_replacements(model.dense, prompts, ablation=Ablation(), neurons={0, 1})
    start = start_state(model.dense, Ablation(), 5)
    state = cut_state(start, Circuit([(0, 1), (0, 2)], [], neurons={1: (2, 5)}), means)
    return pack_state(state), start


def test_weights_that_are_not_the_circuits_are_refused() -> None:
    packed, start = make_packed()
    again = pack_state(unpack_state(Packed(packed.circuit, load(save(dict(packed.tensors)))), start))
    assert again.tensors.keys() == packed.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in packed.tensors.items())
    name, other = "1/m1.W_in", packed.tensors["1/m1.W_in"]
    changes: Sequence[dict[str, torch.Tensor | None]] = (
        {name: None}, {name: other[:, :1]}, {name: other.double()}, {name: other * torch.nan}, {"1/m1.x": other},
        {"7/constant": torch.ones(12)}, {"0/constant": torch.ones(3)}, {"x": other}, {"0/m1.W_in": other, name: None},
    )  # fmt: skip
    for change in changes:
        tensors = {key: t for key, t in (dict(packed.tensors) | change).items() if t is not None}
        with pytest.raises(InputError, match=r"are not those of its circuit; start over without --resume"):
            unpack_state(Packed(packed.circuit, tensors), start)
    with pytest.raises(InputError):
        unpack_state(Packed(Circuit([(0, 9)], []), packed.tensors), start)


def test_a_walk_is_read_with_its_fields_alone() -> None:
    walk = Walk(target=0.3, ratio=0.7, best=0.5, failures=1)
    assert Walk.from_json({"target": 0.3, "ratio": 0.7, "base": 1.0, "best": 0.5, "failures": 1}) == walk
    for change in ({"target": None}, {"failures": 0.5}, {"best": "x"}, {"more": 1}, {"ratio": float("nan")}):
        with pytest.raises((InputError, TypeError)):
            Walk.from_json({"target": 0.3, "ratio": 0.7} | change)
