"""A folder that is written as one: whole and new, or as it was, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import entries, fill, in_child, mounted, striking
from tiers import THOROUGH, as_slow

from exporter.errors import InputError
from exporter.outputs.folders import OutputFolder

OLD = {"a": "old a", "only old": "x"}
NEW = {"a": "new a", "sub/b": "new b", "c": "new c"}


def read(folder: Path) -> dict[str, str] | None:
    """Every file by name; None where there is no folder."""
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def open_folder(out: Path, *, force: bool = False, replaceable: bool = True) -> OutputFolder:
    return OutputFolder(out, is_replaceable=lambda _: replaceable, force=force)


def write(out: Path, *, force: bool = True) -> None:
    with open_folder(out, force=force) as output:
        (output.folder / "sub").mkdir()
        fill(output.folder, NEW)
        output.commit()


def make_old(out: Path) -> None:
    out.mkdir()
    fill(out, OLD)


@pytest.mark.parametrize("name", ["bundle", "bundle.v2", ".hidden", "draft", "lock", "forward"])
@pytest.mark.parametrize("replaces", [False, True])
def test_the_whole_folder_appears_and_nothing_else(name: str, replaces: bool, tmp_path: Path) -> None:
    if replaces:
        make_old(tmp_path / name)
    write(tmp_path / name, force=replaces)
    assert read(tmp_path / name) == NEW
    assert entries(tmp_path) == {name}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", force=False)
    assert read(tmp_path / "b") == NEW
    assert entries(tmp_path) == {"b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_leaving_without_commit_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    def leave(out: Path) -> None:
        with open_folder(out, force=True) as output:
            (output.folder / "half").write_text("half")
            raise error

    make_old(tmp_path / "old")
    for name, before in (("old", OLD), ("fresh", None)):
        with pytest.raises(error):
            leave(tmp_path / name)
        assert read(tmp_path / name) == before
    assert entries(tmp_path) == {"old"}


def test_what_stands_there_is_kept(tmp_path: Path) -> None:
    make_old(tmp_path / "b")
    (tmp_path / "file").write_text("x")
    for output, message in [
        (open_folder(tmp_path / "b"), "b exists; give --force to replace it, or choose another --bundle"),
        (open_folder(tmp_path / "b", replaceable=False, force=True), "is no bundle, or holds other files too"),
        (open_folder(tmp_path / "file", force=True), "is no bundle"),
        (open_folder(tmp_path / "no" / "b"), "no folder .* create it first"),
        (open_folder(Path(), force=True), "no name of its own"),
        (open_folder(tmp_path / ".."), "no name of its own"),
    ]:
        with pytest.raises(InputError, match=message), output:
            raise AssertionError("entered")
    assert (read(tmp_path / "b"), entries(tmp_path)) == (OLD, {"b", "file"})


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with open_folder(tmp_path / "b") as output:
        make_old(tmp_path / "b")
        with pytest.raises(InputError, match="give --force"):
            output.commit()
    assert (read(tmp_path / "b"), entries(tmp_path)) == (OLD, {"b"})


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path / "b") as output:
        with pytest.raises(InputError, match=r"another process is writing .* choose another --bundle"):
            write(tmp_path / "b")
        (output.folder / "a").write_text("new a")
        output.commit()
    assert read(tmp_path / "b") == {"a": "new a"}


@pytest.mark.parametrize("replaces", [False, True])
def test_an_error_at_any_step_leaves_one_whole_folder(replaces: bool, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "I/O error")

    check_every_step(tmp_path, replaces, lambda at, work: fails_at(at, fail, work))


def fails_at(at: int, strike: Callable[[], None], work: Callable[[], None]) -> bool:
    """Whether the work came to an end without the strike."""
    with striking(at, strike) as moments:
        try:
            work()
        except (InputError, OSError):
            return False
    return moments[0] < at


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child only renames files
@pytest.mark.parametrize("replaces", [as_slow(False), True])
def test_a_kill_at_any_step_leaves_one_whole_folder(replaces: bool, tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt(at: int, work: Callable[[], None]) -> bool:
        def struck() -> None:
            with striking(at, kill):
                work()

        return in_child(struck) == 0

    check_every_step(tmp_path, replaces, attempt)


def check_every_step(tmp_path: Path, replaces: bool, attempt: Callable[[int, Callable[[], None]], bool]) -> None:
    """Strike at each moment in turn; afterwards, and after recovery, old or new is there and nothing else."""
    before, outcomes = OLD if replaces else None, []
    for at in range(1, 1000, 1 if THOROUGH else 3):
        parent = tmp_path / str(at)
        parent.mkdir()
        out = parent / "b"
        if replaces:
            make_old(out)
        untouched = attempt(at, lambda out=out: write(out))
        assert read(out) in (before, NEW, None), at
        with open_folder(out, force=True):
            pass
        assert read(out) in (before, NEW), at
        assert entries(parent) <= {"b"}, at
        outcomes.append(read(out) == NEW)
        if untouched:
            break
    assert outcomes[0] is False and outcomes[-1] is True
    assert at > 30


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "tmpfs") as folder:
        make_old(folder / "b")
        with pytest.raises(InputError, match="no space left"), open_folder(folder / "b", force=True) as output:
            (output.folder / "big").write_bytes(bytes(1 << 20))
        assert (read(folder / "b"), entries(folder)) == (OLD, {"b"})
