"""What lies beside a model is somebody else's: readers change nothing, writers touch the output's own names alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest
from conftest import Run
from jobs import CIRCUIT, SMALL
from untrusted import JOURNAL, OWN, STAGE, Planter, hash_tree

from exporter.errors import InputError
from exporter.files import OutputSet
from exporter.files.record import BACK, FORWARD, Record
from exporter.search.journal import Journal


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A folder with a bundle `b`, and a file with weights beside it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "c.json").write_text(CIRCUIT)
    job = ("--task", "acronym", "--model", make_checkpoint(), "--circuit", folder / "c.json", *SMALL)
    Run().succeeds(*job, "--out", folder / "m.onnx", "--external-data")
    Run().succeeds(*job, "--bundle", folder / "b", "--with-past")
    return folder


@pytest.fixture
def place(exported: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it in `work`, with a folder `outside` beside that nothing may touch."""
    shutil.copytree(exported, tmp_path / "work")
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "folder" / "x").write_text("precious")
    (tmp_path / "outside" / "profile").write_text("precious")
    before = hash_tree(tmp_path / "outside")
    yield tmp_path / "work"
    assert hash_tree(tmp_path / "outside") == before


READERS = [
    ("inspect", "m.onnx"), ("inspect", "m.json"), ("inspect", "b/model.onnx"),
    ("verify", "m.onnx"), ("verify", "b/model.onnx"),
    ("run", "b", "The Chief Executive Officer (C"), ("run", "m.onnx", "<|endoftext|>The Big Red Apple (B"),
    ("bench", "m.onnx", "--against", "b/model.onnx", "--batch", "1", "--seconds", "0.1"),
]  # fmt: skip


def plant_old_record(work: Path, name: str) -> None:
    """What did the damage once: a record that names files elsewhere, with a file to put there."""
    stage = work / f".{name}.partial"
    stage.mkdir()
    (stage / "profile").write_text("planted")
    for kind, names in ((".forward", ["../outside/profile", name]), (".back", ["../outside/folder"])):
        (stage / kind).write_text(json.dumps({"names": names, "existed": []}))
        record = Record(stage.stat().st_ino, work.stat().st_ino, dict.fromkeys(names, 1))
        (stage / f".record{kind}").write_text(json.dumps(asdict(record)))


def test_readers_leave_a_foreign_folder_as_it_is(place: Path, run: Run) -> None:
    for name in ("m.onnx", "b", "model.onnx"):
        plant_old_record(place, name)
    plant_old_record(place / "b", "model.onnx")
    (place / "m.onnx.journal").write_text("mine")
    if os.getuid() == 0:
        for path in [place, *place.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)
    for path in [*place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = hash_tree(place)
    try:
        for command, file, *others in READERS:
            arguments = [place / word if word.startswith("b/") else word for word in others]
            code, _, err = run.all(command, place / file, *arguments)
            assert code in (0, 3), (command, file, err)  # 3: a prompt that the model was not made for
            assert hash_tree(place) == before, command
    finally:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755)


@pytest.mark.parametrize("name", ["m.onnx", "b"])
def test_a_record_from_elsewhere_stops_the_writer_and_is_not_carried_out(place: Path, run: Run, name: str) -> None:
    plant_old_record(place, name)
    before = hash_tree(place)
    option = "--bundle" if name == "b" else "--out"
    job = ("--task", "acronym", "--model", "bundled", "--circuit", place / "c.json", "--force", *SMALL)
    run.fails(3, "is not carried out: look into the folder, and remove it", *job, option, place / name)
    assert hash_tree(place) == before


def make_record(folder: Path) -> Path:
    """A writer's stage just before it moves anything, right in every number."""
    stage = folder / STAGE
    stage.mkdir()
    for name in ("m.onnx", "m.json"):
        (stage / name).write_text(f"new {name}")
    new = {name: (stage / name).stat().st_ino for name in ("m.onnx", "m.json")}
    (stage / FORWARD).write_text(json.dumps(asdict(Record(stage.stat().st_ino, folder.stat().st_ino, new))))
    return stage


def recover(folder: Path) -> None:
    with OutputSet(folder / "m.onnx", force=True):
        pass


def test_a_record_of_our_own_is_carried_out(tmp_path: Path) -> None:
    make_record(tmp_path)
    recover(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "m.onnx": "new m.onnx",
        "m.json": "new m.json",
    }


def copy_away(folder: Path) -> None:
    """An archive or a copy gives every file another number."""
    shutil.move(folder / STAGE, folder / "elsewhere")
    shutil.copytree(folder / "elsewhere", folder / STAGE)


def give_away(folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(folder / STAGE / FORWARD, 65534, 65534)


def link_record(folder: Path) -> None:
    record = folder / STAGE / FORWARD
    record.rename(folder / "record")
    record.symlink_to(folder / "record")


def give_second_name(folder: Path) -> None:
    (folder / "record").hardlink_to(folder / STAGE / FORWARD)


def name_neighbour(folder: Path) -> None:
    record = json.loads((folder / STAGE / FORWARD).read_text())
    (folder / STAGE / FORWARD).write_text(json.dumps(record | {"leaving": ["notes.txt"]}))


def replace_by_pipe(folder: Path) -> None:
    (folder / STAGE / FORWARD).unlink()
    os.mkfifo(folder / STAGE / FORWARD)


@pytest.mark.parametrize(
    "change", [copy_away, give_away, link_record, give_second_name, name_neighbour, replace_by_pipe]
)
def test_a_record_that_is_not_ours_is_not_carried_out(change: Callable[[Path], None], tmp_path: Path) -> None:
    make_record(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    change(tmp_path)
    before = hash_tree(tmp_path)
    with pytest.raises(InputError, match="is not carried out"):
        recover(tmp_path)
    assert hash_tree(tmp_path) == before


@pytest.mark.parametrize("direction", [FORWARD, BACK])
def test_a_staged_file_that_became_a_link_goes_nowhere(direction: str, tmp_path: Path) -> None:
    """It is not the one that the record names."""
    stage = make_record(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (stage / "m.onnx").unlink()
    (stage / "m.onnx").symlink_to(tmp_path / "secret")
    (stage / FORWARD).rename(stage / direction)
    if direction == FORWARD:  # the manifest alone would be half a set
        with pytest.raises(InputError, match="is not carried out"):
            recover(tmp_path)
    else:
        recover(tmp_path)
    assert not (tmp_path / "m.onnx").exists()
    assert not (tmp_path / "m.json").exists()
    assert (tmp_path / "secret").read_text() == "secret"


def plant(kind: str, place: Path, target: Path) -> None:
    match kind:
        case "link":
            place.symlink_to(target)
        case "dangling":
            place.symlink_to(target / "nothing")
        case "file":
            place.write_text("mine")
        case "pipe":
            os.mkfifo(place)
        case "folder":
            (place / "sub").mkdir(parents=True)
        case "hard":
            target.write_text("precious") if not target.exists() else None
            place.hardlink_to(target)
        case "socket":
            with socket.socket(socket.AF_UNIX) as plug:
                plug.bind(str(place))


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "pipe", "socket"])
def test_what_stands_at_the_stages_name_stops_the_writer(kind: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("mine")
    plant(kind, tmp_path / STAGE, tmp_path / "other")
    before = hash_tree(tmp_path)
    with pytest.raises(InputError, match=r"is needed to write m\.onnx, and is no folder; remove it"):
        recover(tmp_path)
    assert hash_tree(tmp_path) == before


def test_another_users_stage_stops_the_writer(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    (tmp_path / STAGE).mkdir()
    os.chown(tmp_path / STAGE, 65534, 65534)
    with pytest.raises(InputError, match="another user's"):
        recover(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "hard"])
def test_the_lock_of_older_versions_is_rubbish_and_nothing_more(kind: str, tmp_path: Path) -> None:
    (tmp_path / STAGE).mkdir()
    plant(kind, tmp_path / STAGE / ".lock", tmp_path / "other")
    recover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"other"}
    if kind == "hard":
        assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "pipe", "folder", "hard", "socket"])
def test_what_stands_at_the_journals_name_is_left_alone(kind: str, resume: bool, tmp_path: Path) -> None:
    plant(kind, tmp_path / JOURNAL, tmp_path / "other")
    before = hash_tree(tmp_path)
    with pytest.raises(InputError), Journal(tmp_path / JOURNAL, {}, resume=resume):
        raise AssertionError("entered")
    assert hash_tree(tmp_path) == before


def test_a_journal_that_was_replaced_meanwhile_is_not_removed(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL, {}, resume=False):
        (tmp_path / JOURNAL).unlink()
        (tmp_path / JOURNAL).write_text("mine")
    assert (tmp_path / JOURNAL).read_text() == "mine"


def test_a_plain_job_refuses_a_file_at_its_journals_name_and_keeps_it(place: Path, run: Run) -> None:
    (place / "n.onnx.journal").write_text("my own notes")
    run.fails(
        3, r"n\.onnx\.journal is no journal of a search, and is left as it is; move it away", "--task", "acronym",
        "--model", "bundled", "--circuit", place / "c.json", "--out", place / "n.onnx", *SMALL,
    )  # fmt: skip
    assert (place / "n.onnx.journal").read_text() == "my own notes"


def test_a_bundle_written_from_inside_the_folder_that_it_replaces(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch, make_checkpoint: Callable[..., Path]
) -> None:
    model, circuit = make_checkpoint(), place / "c.json"
    monkeypatch.chdir(place / "b")
    job = ("--task", "acronym", "--model", model, "--circuit", circuit, *SMALL, "--bundle", "../b", "--force")
    run.succeeds(*job)
    monkeypatch.chdir(place)
    assert sorted(path.name for path in place.iterdir()) == sorted(["b", "c.json", *(p.name for p in place.glob("m*"))])
    assert "is exact on" in run.succeeds("verify", "b/model.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "*/_ORT_MEM_ADDR_/*", "a\\b"])
def test_weights_elsewhere_are_not_opened(location: str, place: Path, run: Run) -> None:
    (place.parent / "secret").write_bytes(bytes(1 << 22))
    rewrite_places(place / "m.onnx", location=location)
    for command in (("inspect",), ("verify",), ("bench", "--against", place / "b" / "model.onnx")):
        run.fails(3, "which is no file beside it; it is not opened", command[0], place / "m.onnx", *command[1:])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "-4"}, "says nonsense of its weights"),
        ({"offset": "x"}, "says nonsense of its weights"),
        ({"length": "99999999999999999999"}, "says nonsense of its weights"),
        ({"offset": "99999999999"}, "which is too short"),
    ],
)
def test_places_that_make_no_sense_are_refused(entries: dict[str, str], message: str, place: Path, run: Run) -> None:
    rewrite_places(place / "m.onnx", **entries)
    run.fails(3, message, "inspect", place / "m.onnx")


def rewrite_places(path: Path, **entries: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.external_data:
            known = {entry.key: entry.value for entry in tensor.external_data} | entries
            del tensor.external_data[:]
            for key, value in known.items():
                tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_nothing_waits_for_what_is_no_file(kind: str, place: Path, run: Run) -> None:
    """Every file that a command reads, replaced by something that gives no byte or no end."""
    weights = next(path.name for path in place.iterdir() if path.name.endswith(".data"))
    for name, commands in {
        "m.onnx": [("inspect",), ("verify",), ("run", "x"), ("bench", "--against", place / "b" / "model.onnx")],
        "m.json": [("inspect",)],
        weights: [("inspect",), ("verify",), ("run", "x")],
        "c.json": [],
    }.items():
        kept = (place / name).read_bytes()
        (place / name).unlink()
        if kind == "device":
            (place / name).symlink_to("/dev/zero")
        else:
            plant(kind, place / name, place)
        file = place / (name if name.endswith((".onnx", ".json")) else "m.onnx")
        for command in commands:
            run.fails(3, "", command[0], file, *command[1:])
        if name == "c.json":
            job = ("--task", "acronym", "--model", "bundled", "--out", place / "n.onnx", *SMALL)
            run.fails(3, "", *job, "--circuit", file)
        shutil.rmtree(place / name) if kind == "folder" else (place / name).unlink()
        (place / name).write_bytes(kept)


def test_links_to_weights_are_followed(place: Path, run: Run) -> None:
    """A hub cache is made of links, and a backup of hard links."""
    os.link(place / "m.onnx", place / "h.onnx")
    blobs, snapshot = place / "blobs", place / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(sorted(place.glob("m*"))):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / str(number))
    for folder in (snapshot, blobs):
        if folder == blobs:
            for path in snapshot.iterdir():
                os.link(path.resolve(), place / path.name)
        file = (snapshot if folder == snapshot else place) / "m.onnx"
        assert "is exact on" in run.succeeds("verify", file)
        assert "acronym" in run.succeeds("inspect", file)


@pytest.mark.parametrize("draws", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_draw_touches_a_name_that_is_not_the_outputs_own(draws: int, tmp_path: Path) -> None:
    """Records, locks and journals at random: outside is never touched, nor a neighbour, nor an old file unforced."""
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "x").write_text("precious")
    (outside / "profile").write_text("precious")
    outcomes = set()
    for seed in range(draws):
        work = tmp_path / "work"
        work.mkdir()
        (work / "notes.txt").write_text("mine")
        (work / "link").symlink_to(outside / "folder")
        planter = Planter(work, outside, seed)
        planter.plant()
        force, resume, writes = (planter.rng.random() < 0.5 for _ in range(3))
        held, before = contents(outside), contents(work)
        with suppress(InputError), OutputSet(work / "m.onnx", force=force) as files:
            with Journal(work / JOURNAL, {}, resume=resume):
                pass
            files.path(".onnx").write_text("new")
            files.path(".json").write_text("new")
            if writes:
                files.commit()
        after = contents(work)
        assert contents(outside) == held, seed
        assert dict(filter(is_foreign, after.items())) == dict(filter(is_foreign, before.items())), seed
        if not force and not any(name in (f"{STAGE}/.forward", f"{STAGE}/.back") for name in before):
            assert all(after.get(name) == before[name] for name in ("m.onnx", "m.json") if name in before), seed
        outcomes.add(after.get("m.onnx"))
        shutil.rmtree(work)
    assert {None, "file new"} < outcomes  # some draws write, others are refused


def contents(folder: Path) -> dict[str, str]:
    """Every entry below: where a link leads, what a file holds, or that it is a folder or something else."""
    found = {}
    for path in folder.rglob("*"):
        kind = "other"
        if path.is_symlink():
            kind = f"link {path.readlink()}"
        elif path.is_file():
            kind = f"file {path.read_text()}"
        elif path.is_dir():
            kind = "folder"
        found[str(path.relative_to(folder))] = kind
    return found


def is_foreign(entry: tuple[str, str]) -> bool:
    return entry[0].split("/")[0] not in OWN
