"""The outermost layer: exit codes, one line on stderr, and Ctrl-C at any moment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from waits import HANG, wait_until

import exporter.cli.main
from exporter import errors
from exporter.__main__ import run_command

ROOT = Path(__file__).parents[2]


def run_app(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], *arguments: str) -> int:
    """`run_command` with an app whose only command does this."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(number: int = 0, debug: bool = False) -> object:
        return action()

    monkeypatch.setattr(exporter.cli.main, "app", app)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    code = run_command(list(arguments))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    return code


def fail(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "usage": (errors.UsageError("no"), 2, "export-circuit: error: no\n"),
    "input": (errors.InputError("bad file"), 3, "export-circuit: error: bad file\n"),
    "exactness": (errors.ExactnessError("differ"), 4, "export-circuit: error: differ\n"),
    "regression": (errors.RegressionError("slow"), 5, "export-circuit: error: slow\n"),
    "runtime": (errors.MissingRuntimeError("none"), 6, "export-circuit: error: none\n"),
    "parameter": (typer.BadParameter("7 is odd."), 2, "7 is odd. See: export-circuit --help\n"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 3, "No space left on device (/x/y)"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 3, "Permission denied (/x/y)"),
    "memory": (MemoryError(), 1, "out of memory"),
    "torch memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
    "package": (ModuleNotFoundError("No module", name="torch.x"), 6, "package torch.x is not installed; pip install"),
    "own module": (ModuleNotFoundError("No module", name="exporter.x"), 1, "ModuleNotFoundError: No module; run"),
    "bug": (ValueError("two\nlines"), 1, "error: ValueError: two lines; run again with --debug for the traceback\n"),
    "exit": (SystemExit(9), 9, ""),
    "exit with text": (SystemExit("so long"), 1, "so long\n"),
    "typer exit": (typer.Exit(7), 7, ""),
    "reader gone": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    error, code, message = FAILURES[name]
    assert run_app(monkeypatch, fail(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == (1 if message else 0)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(monkeypatch, fail(errors.InputError("bad file")), "--debug") == 3
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("export-circuit: error: bad file\n")


def test_success_and_what_a_command_returns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(monkeypatch, lambda: print("done")) == 0
    assert run_app(monkeypatch, lambda: 5) == 5
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--number", "many"], ["too", "much"]])
def test_usage_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_app(monkeypatch, lambda: None, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("export-circuit: error: ")
    assert err.endswith(" See: export-circuit --help\n")
    assert err.count("\n") == 1


def test_bytes_that_are_no_text_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "m.onnx", b"\xff".decode(errors="surrogateescape")]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "export-circuit: error: the argument '\\udcff' is not UTF-8; write or name it in UTF-8\n")


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("swallow", [False, True], ids=["raised", "turned into another error"])
def test_a_signal_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, word: str, swallow: bool
) -> None:
    cleaned = []

    def action() -> None:
        try:
            signal.raise_signal(number)
        except BaseException as error:
            if swallow:
                raise ImportError("numpy is broken") from error
            raise
        finally:
            cleaned.append(True)

    assert run_app(monkeypatch, action) == 128 + number
    assert cleaned
    assert capsys.readouterr() == ("", f"export-circuit: {word}\n")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 40, 400, 1000, 1600])
def test_ctrl_c_during_the_imports_is_one_line(at: int) -> None:
    """SIGINT while the `at`-th module is looked for: typer's, torch's, transformers' own imports."""
    code = """
        import signal, sys
        from exporter.__main__ import main

        class Strike:
            left = int(sys.argv.pop(1))

            def find_spec(self, *_):
                Strike.left -= 1
                if Strike.left == 0:
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Strike())
        main()
    """
    done = run_process(code, str(at), "tasks")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "export-circuit: interrupted\n")


def test_ctrl_c_within_exec_still_ends_with_an_exit_code(tmp_path: Path) -> None:
    """Named tuples are made with exec, and `python -m` kills itself for a plain KeyboardInterrupt that passed it."""
    code = """
        import exporter.cli.main
        from exporter.__main__ import main
        import typer

        exporter.cli.main.app = app = typer.Typer()

        @app.command()
        def run():
            exec("import signal; signal.raise_signal(signal.SIGINT)")

        main()
    """
    (tmp_path / "job.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-m", "job"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "export-circuit: interrupted\n")


def test_a_signal_that_a_library_swallows_comes_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def action() -> None:
        Finalized()  # the exception is lost here
        time.sleep(HANG)
        slept.append(True)

    slept: list[bool] = []
    assert run_app(monkeypatch, action) == 130
    assert not slept
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert capsys.readouterr() == ("", "export-circuit: interrupted\n")


def test_the_entry_point_imports_nothing_heavy() -> None:
    code = "import sys; import exporter.__main__; print(len({'torch', 'typer', 'rich', 'numpy'} & set(sys.modules)))"
    assert run_process(code).stdout == "0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_to_a_real_process(number: int, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = """
        import sys, time
        from pathlib import Path
        import exporter.cli.main
        from exporter.__main__ import main
        import typer

        exporter.cli.main.app = app = typer.Typer()

        @app.command()
        def wait(path: str):
            Path(path).touch()
            time.sleep(900)

        main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(started)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(started.exists, lambda: process.poll() is None), process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG)
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert (process.returncode, out, err) == (128 + number, "", f"export-circuit: {word}\n")


PRINTS = """
    import sys
    import exporter.cli.main
    from exporter.__main__ import main
    import typer

    exporter.cli.main.app = app = typer.Typer()

    @app.command()
    def talk():
        for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 100000):
            print("a line of some length")

    sys.argv = ["export-circuit"]
    main()
"""


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRINTS)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "a line of some length\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_standard_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PRINTS)],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("export-circuit: error: cannot read or write: No space left on device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["tasks", "--help"], 0), ([], 2), (["--nonsense"], 2), (["nonsense"], 2)]
)
def test_the_real_command(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)
    assert "Traceback" not in done.stderr
    assert ("Usage" in done.stdout) == (code == 0)
