"""What every request passes first and last: limits on its body and time, a count, a line in the log.

The whole body is read here, within both limits, and handed on: nothing behind this waits for a client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from exporter.serve.refusals import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("exporter.serve")


@dataclass(frozen=True)
class Gate:
    """An ASGI application before `app`, for bodies of at most `max_body` bytes that come within `timeout` seconds.

    `refuse` is told of the code of each request that does not come through, `watch` of each request's path, status and
    seconds.
    """

    app: App
    max_body: int
    timeout: float
    refuse: Callable[[RequestError], None]
    watch: Callable[[str, int, float], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._pass(scope, receive, send_on)
        except RequestError as problem:
            self.refuse(problem)
            await _answer(send_on, problem)
        except Exception as error:  # whatever it is: the client gets JSON, the log gets one line
            LOG.error("unexpected %s: %s", type(error).__name__, " ".join(str(error).split())[:300])
            self.refuse(failure := RequestError("internal_error", "the server failed; its log says more"))
            if not status:
                await _answer(send_on, failure)
        finally:
            if status:
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                self.watch(path, status, time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on. Raises RequestError for one that is too large or too slow."""
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._read(scope, receive)
        except TimeoutError as error:
            raise RequestError("too_slow", f"the request did not come within {self.timeout:g} s") from error
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client has gone. Raises RequestError."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        body, more = bytearray(), True
        size = int(announced) if announced.isdigit() else 0
        while more and max(size, len(body)) <= self.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if max(size, len(body)) <= self.max_body:
            return bytes(body)
        raise RequestError("too_large", f"the request has more than {self.max_body:,} bytes; send fewer prompts in one")


async def _answer(send: Send, problem: RequestError) -> None:
    """A problem as a response; the connection is closed, for the rest of the request is not read."""
    body = json.dumps(problem.to_json()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body in one message, and then what else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message
