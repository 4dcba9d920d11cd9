"""The outermost layer of the command: whatever happens ends in one line on stderr and an exit code.

It imports next to nothing itself, so that Ctrl-C is caught from the start, also while torch and
transformers are being imported.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from exporter.errors import ExportCircuitError, InputError, MissingRuntimeError, RegressionError, UsageError
from exporter.escaping import escape_controls, shorten

_NAME = "export-circuit"
_AGAIN_SECONDS = 1.0
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Failed to allocate memory")


class Interrupted(KeyboardInterrupt):
    """SIGINT. A plain KeyboardInterrupt that passes through `exec` makes Python kill itself at its end."""


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a terminal that closes, as an exception that lets every `with` clean up."""


class _Signals:
    """Within the context SIGINT, SIGTERM and SIGHUP raise, and `received` is the first of them.

    A library can swallow the exception: a bare `except` around an import, a finalizer. So the signal
    comes again each second until `ignore` is called.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._report = sys.unraisablehook

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as a shell sets it for what runs in the background
                self._previous[number] = handler
                signal.signal(number, self._raise)
        sys.unraisablehook = self._report_unless_signal
        return self

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        if self.received is None:
            self.received = number
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
        raise Interrupted if number == signal.SIGINT else Terminated

    def _report_unless_signal(self, unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted | Terminated):  # raised in a finalizer
            self._report(unraisable)

    def ignore(self) -> None:
        """From here on no signal raises: what is left to do is to say how it ended."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = self._report


def main() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding lacks is written like \\u25a0
        with suppress(AttributeError, ValueError):  # none, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as it is where it is one
    code = run_command(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter's own end would print a traceback
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code; prints one line on stderr for what went wrong."""
    # else MKL shares out sums by what the machine is doing, and the last digits of two runs can differ
    os.environ.setdefault("MKL_CBWR", "AUTO")
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options  # wherever it stands, also behind a sub-command
    arguments = [a for a in options if a != "--debug"] + arguments[len(options) :]
    with _Signals() as signals:
        try:
            _require_text(arguments)
            from exporter.cli.main import app

            result = app(args=arguments, prog_name=_NAME, standalone_mode=False)
            sys.stdout.flush()
            message, code = "", result if isinstance(result, int) else 0
        except BaseException as error:
            signals.ignore()
            if debug and not isinstance(error, SystemExit):
                import traceback

                traceback.print_exception(error)
            message, code = _describe(error)
        signals.ignore()
        if signals.received is not None:  # a library may have turned the exception into something else
            word = "interrupted" if signals.received == signal.SIGINT else "terminated"
            message, code = f"{_NAME}: {word}", 128 + signals.received
        _settle_output(message)
    return code


def _require_text(arguments: list[str]) -> None:
    """Raise UsageError for bytes that are no UTF-8: neither a tokenizer nor a manifest can take them."""
    for argument in arguments:
        try:
            argument.encode()
            if "\0" in argument:
                raise UsageError(f"the argument {argument[:80]!r} holds a NUL, which no name can")
        except UnicodeEncodeError as error:
            raise UsageError(f"the argument {ascii(argument)[:80]} is not UTF-8; write or name it in UTF-8") from error


def _describe(error: BaseException) -> tuple[str, int]:
    """The line to print (may be empty) and the exit code."""
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return "", 128 + signal.SIGPIPE  # the reader has gone: nothing is wrong
    if isinstance(error, SystemExit):
        is_number = error.code is None or isinstance(error.code, int)
        return ("", int(error.code or 0)) if is_number else (escape_controls(error.code, keep="\n"), 1)
    if isinstance(error, ExportCircuitError):
        keep = "\n" if isinstance(error, RegressionError) else ""  # what is measured, and what to do
        return _error_line(str(error), keep=keep), error.exit_code
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return _error_line("out of memory; close other programs, or choose a smaller model"), 1
    if isinstance(error, RecursionError):
        text = "a file is nested too deeply to be read; give one that export-circuit wrote, or write it plainer"
        return _error_line(text), InputError.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "exporter":
        advice = f"pip install '{_NAME}[cpu]' (or '{_NAME}[gpu]' for CUDA)"
        return _error_line(f"the package {error.name} is not installed; {advice}"), MissingRuntimeError.exit_code
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    ):
        where = f" ({str(error.filename)[:120]})" if error.filename else ""
        return _error_line(
            f"cannot read or write: {error.strerror}{where}; free space, mend permissions or give another name"
        ), InputError.exit_code
    return _describe_other(error)


def _describe_other(error: BaseException) -> tuple[str, int]:
    """Usage errors, and what nobody expected. `typer` is imported last: it may be what is missing."""
    text = " ".join(str(error).split())[:300]
    try:
        from typer.exceptions import TyperException
    except ImportError:
        pass
    else:
        if isinstance(error, TyperException):
            usage = " ".join(error.format_message().split())
            return _error_line(f"{usage} See: {_NAME} --help"), error.exit_code
    name = type(error).__name__
    return _error_line(f"{name}: {text}; run again with --debug for the traceback"), 1


def _error_line(message: str, *, keep: str = "") -> str:
    return f"{_NAME}: error: {shorten(escape_controls(message, keep=keep))}"


def _settle_output(message: str) -> None:
    """Print the message and flush; what cannot be written is dropped, so that Python's own end is quiet."""
    if message:
        with suppress(OSError, ValueError):  # standard error is closed or full: there is nobody to tell
            print(message, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.close(devnull)


if __name__ == "__main__":
    main()
