"""Output sets: all new or all old, after success, failure, Ctrl-C, a kill at any step, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import asdict
from pathlib import Path

import pytest
from disks import entries, fill, in_child, mounted, striking
from tiers import THOROUGH

from exporter.errors import InputError
from exporter.files import OutputSet
from exporter.files.record import BACK, FORWARD, Record

SUFFIXES = (".onnx", ".html", ".json")
OLD = {"model.onnx": "old onnx", "model.html": "old html", "model.json": "old json"}
NEW = {"model.onnx": "new onnx", "model.html": "new html", "model.json": "new json"}

# What a crash may show before anything recovers it: a manifest never stands beside files of another set.
RAW = [
    OLD,
    {name: text for name, text in OLD.items() if name != "model.json"},
    {"model.onnx": "new onnx", "model.html": "old html"},
    {"model.onnx": "new onnx", "model.html": "new html"},
    NEW,
]


STEP = 1 if THOROUGH else 3  # of the moments that a kill may strike at


def read(folder: Path) -> dict[str, str]:
    """Every file in the folder by name; what stands in hidden folders counts too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> dict[str, str]:
    return {name: text for name, text in read(folder).items() if not name.startswith(".")}


def write(folder: Path, *, force: bool = True, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    with OutputSet(folder / "model.onnx", suffixes=suffixes, force=force) as files:
        for suffix in suffixes:
            files.path(suffix).write_text(NEW[f"model{suffix}"])
        files.commit()


def recover(folder: Path) -> None:
    """A writer that comes and goes without writing finishes what the one before it left."""
    with OutputSet(folder / "model.onnx", suffixes=SUFFIXES, force=True):
        pass


def make_stage(folder: Path) -> Path:
    """What a writer of NEW leaves that is killed when its record is written and nothing has been moved."""
    stage = folder / ".model.onnx.partial"
    stage.mkdir()
    fill(stage, NEW)
    new = {name: (stage / name).stat().st_ino for name in NEW}
    record = Record(stage=stage.stat().st_ino, folder=folder.stat().st_ino, new=new)
    (stage / FORWARD).write_text(json.dumps(asdict(record)))
    return stage


@pytest.mark.parametrize("before", [{}, OLD], ids=["fresh", "replacing"])
def test_the_whole_set_appears_and_nothing_else(tmp_path: Path, before: dict[str, str]) -> None:
    fill(tmp_path, before)
    write(tmp_path, force=bool(before))
    assert read(tmp_path) == NEW
    assert entries(tmp_path) == set(NEW)


def test_a_relative_name_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with OutputSet("model.onnx") as files:
        files.path(".onnx").write_text("new onnx")
        files.path(".json").write_text("new json")
        assert files.target(".json") == Path("model.json")
        files.commit()
    assert read(tmp_path) == {"model.onnx": "new onnx", "model.json": "new json"}


@pytest.mark.parametrize("before", [{}, OLD], ids=["fresh", "replacing"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_leaving_without_commit_leaves_what_was_there(
    tmp_path: Path, before: dict[str, str], error: type[BaseException]
) -> None:
    def leave() -> None:
        with OutputSet(tmp_path / "model.onnx", force=True) as files:
            files.path(".onnx").write_text("half an on")
            raise error

    fill(tmp_path, before)
    with pytest.raises(error):
        leave()
    assert read(tmp_path) == before
    assert entries(tmp_path) == set(before)


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_an_existing_file_is_kept_without_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=rf"{name} exists; give --force"), OutputSet(tmp_path / "model.onnx"):
        raise AssertionError("entered")
    assert read(tmp_path) == {name: "precious"}


def test_a_file_that_appears_meanwhile_is_kept_without_force(tmp_path: Path) -> None:
    with OutputSet(tmp_path / "model.onnx") as files:
        files.path(".onnx").write_text("new")
        files.path(".json").write_text("new")
        (tmp_path / "model.json").write_text("precious")
        with pytest.raises(InputError, match=r"model\.json exists; give --force"):
            files.commit()
    assert read(tmp_path) == {"model.json": "precious"}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("absent/model.onnx", "no folder '.*absent' to write model.onnx in; create it first"),
        ("file/model.onnx", "no folder"),
        ("model.bin", r"must end in \.onnx"),
        ("model", r"must end in \.onnx"),
        ("folder.onnx", "is a folder"),
        ("n" * 300 + ".onnx", "File name too long"),
    ],
)
def test_an_impossible_output_is_refused_early(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=message), OutputSet(tmp_path / out, force=True):
        raise AssertionError("entered")
    assert read(tmp_path) == {"file": "x"}


def test_a_second_writer_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with OutputSet(tmp_path / "model.onnx") as files:
        files.path(".onnx").write_text("new onnx")
        files.path(".json").write_text("new json")
        with pytest.raises(InputError, match="another process is writing"), OutputSet(tmp_path / "model.onnx"):
            raise AssertionError("entered")
        files.commit()
    assert read(tmp_path) == {"model.onnx": "new onnx", "model.json": "new json"}


@pytest.mark.parametrize("before", [{}, OLD], ids=["fresh", "replacing"])
@pytest.mark.parametrize("fail_at", range(1, 6))
def test_a_failing_rename_restores_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], fail_at: int
) -> None:
    fill(tmp_path, before)
    rename, calls = os.rename, [0]

    def fail(source: str, target: str, **folders: int) -> None:
        calls[0] += 1
        if calls[0] == fail_at:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", fail)
    renames = 5 if before else 4  # the record, the old manifest, three files
    if fail_at > renames:
        write(tmp_path)
        assert read(tmp_path) == NEW
        return
    with pytest.raises(InputError, match="Input/output error"):
        write(tmp_path)
    assert read(tmp_path) == before
    assert entries(tmp_path) == set(before)


def test_without_hard_links_the_set_is_still_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **_folders: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path, OLD)
    write(tmp_path)
    assert read(tmp_path) == NEW


@pytest.mark.parametrize("before", [{}, OLD], ids=["fresh", "replacing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_at_any_step_leaves_one_set(tmp_path: Path, before: dict[str, str], number: int) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    handlers = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    outcomes = set()
    try:
        for at in range(1, 1000):
            folder = tmp_path / str(at)
            folder.mkdir()
            fill(folder, before)
            interrupted = False
            with striking(at, lambda: signal.raise_signal(number)) as moments:
                try:
                    write(folder)
                except KeyboardInterrupt:
                    interrupted = True
            assert read(folder) in (before, NEW), at
            assert entries(folder) in (set(before), set(NEW)), at
            assert interrupted == (moments[0] >= at), at
            assert signal.getsignal(signal.SIGINT) is stop
            outcomes.add("new" if read(folder) == NEW else "old")
            if not interrupted:
                break
        else:
            raise AssertionError("never finished")
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert outcomes == {"old", "new"}
    assert at > 30


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child only renames files
@pytest.mark.parametrize(
    "before", [pytest.param({}, id="fresh", marks=pytest.mark.slow), pytest.param(OLD, id="replacing")]
)
def test_a_kill_at_any_step_leaves_one_set_after_recovery(tmp_path: Path, before: dict[str, str]) -> None:
    raw = RAW if before else [{}, *(dict(list(NEW.items())[:count]) for count in (1, 2, 3))]
    outcomes = set()
    for at in range(1, 1000, STEP):
        folder = tmp_path / str(at)
        folder.mkdir()
        fill(folder, before)

        def work(at: int = at, folder: Path = folder) -> None:
            with striking(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                write(folder)

        status = in_child(work)
        assert visible(folder) in raw, at
        recover(folder)
        assert read(folder) in (before, NEW), at
        assert entries(folder) in (set(before), set(NEW)), at
        outcomes.add("new" if read(folder) == NEW else "old")
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        raise AssertionError("never finished")
    assert outcomes == {"old", "new"}
    assert at > 30


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_during_recovery_or_rollback_is_recovered_too(tmp_path: Path) -> None:
    def interrupted_commit(folder: Path, rollback: bool) -> None:
        """The state after a kill in the middle of the renames, or after a failed rename."""
        fill(folder, OLD)
        stage = make_stage(folder)
        (folder / "model.json").replace(stage / "old-model.json")
        (stage / "old-model.onnx").hardlink_to(folder / "model.onnx")
        (stage / "model.onnx").replace(folder / "model.onnx")
        if rollback:
            (stage / FORWARD).replace(stage / BACK)

    for rollback, wanted in ((False, NEW), (True, OLD)):
        for at in range(1, 1000, STEP):
            folder = tmp_path / f"{rollback}-{at}"
            folder.mkdir()
            interrupted_commit(folder, rollback)

            def work(at: int = at, folder: Path = folder) -> None:
                with striking(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                    recover(folder)

            status = in_child(work)
            recover(folder)
            assert read(folder) == wanted, (rollback, at)
            if status == 0:
                break
        assert at > 10


def write_much(folder: Path, count: int) -> None:
    with OutputSet(folder / "model.onnx", force=True) as files:
        with files.path(".onnx").open("wb") as file:
            for _ in range(count):
                file.write(b"\0" * 65536)
        files.path(".json").write_text("new json")
        files.commit()


def test_a_full_disk_is_said_in_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        fill(folder, OLD)
        with pytest.raises(InputError, match=r"no space left to write .*model\.onnx; free some") as caught:
            write_much(folder, 100)
        assert "\n" not in str(caught.value)
        assert read(folder) == OLD
        write_much(folder, 2)
        assert (folder / "model.onnx").stat().st_size == 131072


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k,nr_inodes=4", "tmpfs") as folder:
        fill(folder, OLD)
        with pytest.raises(InputError, match="no space left"):
            write(folder)
        assert read(folder) == OLD


def test_a_file_size_limit_is_said_in_one_line(tmp_path: Path) -> None:
    fill(tmp_path, OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # Python ignores the signal: EFBIG comes
    try:
        with pytest.raises(InputError, match="File too large"):
            write_much(tmp_path, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path) == OLD


def test_a_read_only_file_system_is_said_in_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        fill(folder, OLD)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(InputError, match=r"cannot write .*: Read-only file system; write elsewhere"):
            write(folder)
        assert read(folder) == OLD


def test_an_interrupted_set_on_a_read_only_file_system_is_said(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        make_stage(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(InputError, match="Read-only file system"):
            recover(folder)


def test_a_folder_without_write_permission_is_said_in_one_line() -> None:
    """In a process of its own that is not root, for whom permissions hold."""
    folder = Path(tempfile.mkdtemp(prefix="export-circuit-"))  # pytest's own are closed to other users
    try:
        fill(folder, OLD)
        folder.chmod(0o555)
        script = """
            import os, sys
            from exporter.errors import InputError
            from exporter.files import OutputSet
            if os.getuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            try:
                with OutputSet(sys.argv[1], force=True):
                    print("entered")
            except InputError as error:
                print(error)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(folder / "model.onnx")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert "Permission denied; write elsewhere" in done.stdout
        assert len(done.stdout.splitlines()) == 1
        assert read(folder) == OLD
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_an_unrelated_oserror_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), OutputSet(tmp_path / "model.onnx"):
        (tmp_path / "other" / "file").read_text()
    assert entries(tmp_path) == set()
