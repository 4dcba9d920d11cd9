"""The process: a socket, uvicorn's loop around the application, and a stop that answers what was accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from exporter.errors import InputError

_BACKLOG = 1024
_EXTRA_SECONDS = 1.0


def bind_address(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet: clients are refused until a server takes it.

    `port` 0 is one that is free. Raises InputError: there is no such address, or it is taken.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of one that has just stopped
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen on {host}:{port}: {reason}; give another --host or --port") from error


def serve_app(app: FastAPI, listener: socket.socket, *, timeout: float, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return; a second signal ends it at once.

    `announce` is told of the URL when the server takes requests. `timeout`: seconds that a request may take.
    """
    with listener:
        server = _Server(_configure(app, timeout), lambda: announce(_name_url(listener)))
        server.run(sockets=[listener])


def _configure(app: FastAPI, timeout: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(timeout + _EXTRA_SECONDS) + 1,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, whose stop is an end as any other: it does not raise the signal again."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within the context both signals stop the server."""
        before = {number: signal(number, self._stop) for number in (SIGTERM, SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _name_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
