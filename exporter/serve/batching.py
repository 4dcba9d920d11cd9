"""Dynamic batching: prompts that come while a call runs share the next one.

ONNX Runtime runs in one worker thread, so that the event loop goes on taking requests. A call starts as soon as the
worker is free. Clients that wait for their answers come again right after it, one by one: so a call waits until as
many requests are here as when the last one ended, for `max_wait` seconds at most. A lone client is never waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from exporter.serve.engine import Engine, Query, Ranking
from exporter.serve.refusals import RequestError

Result = Ranking | RequestError


@dataclass(eq=False)
class _Request:
    """What was submitted at once; `pending` queries of it have no result."""

    pending: int


@dataclass(eq=False)
class _Item:
    query: Query
    request: _Request
    future: asyncio.Future[Result]


@dataclass(eq=False)
class Batcher:
    """A bounded queue before one engine. `watch` is told of the size of each call.

    All is for one event loop, the one that `submit` runs in. A task drains the queue and ends with it: there is
    nothing to start, and nothing to stop.
    """

    engine: Engine
    executor: Executor
    max_batch: int
    max_wait: float
    max_queue: int
    watch: Callable[[int], None] = lambda _: None
    _waiting: deque[_Item] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None
    _enough: asyncio.Event = field(default_factory=asyncio.Event)
    _requests: int = 0  # without a result
    _expected: int = 1  # requests, when the last call ended

    def __len__(self) -> int:
        """How many prompts wait."""
        return len(self._waiting)

    async def submit(self, queries: Sequence[Query]) -> list[Result]:
        """The result of each query, which `engine.check` has taken. Raises RequestError: the queue is full.

        All are queued or none. Where the caller is cancelled, queries that wait are dropped.
        """
        if len(self._waiting) + len(queries) > self.max_queue:
            self._drop_cancelled()
        if len(self._waiting) + len(queries) > self.max_queue:
            raise RequestError("queue_full", f"{len(self._waiting)} prompts wait already; try again in a second")
        if not queries:
            return []
        loop = asyncio.get_running_loop()
        request = _Request(len(queries))
        items = [_Item(query, request, loop.create_future()) for query in queries]
        self._waiting.extend(items)
        self._requests += 1
        if self._is_enough():
            self._enough.set()
        if self._task is None:
            self._task = loop.create_task(self._drain())
        try:
            return list(await asyncio.gather(*(item.future for item in items)))
        finally:
            if request.pending:  # cancelled, or a call failed
                request.pending = 0
                self._requests -= 1
                for item in items:
                    item.future.cancel()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                if group := self._take():
                    await self._run(group)
        finally:
            self._task = None

    def _is_enough(self) -> bool:
        return self._requests >= self._expected or len(self._waiting) >= self.max_batch

    async def _gather(self) -> None:
        """Wait for those who were answered last, unless they are here."""
        if self._is_enough() or not self.max_wait:
            return
        self._enough.clear()
        try:
            await asyncio.wait_for(self._enough.wait(), self.max_wait)
        except TimeoutError:
            return

    def _take(self) -> list[_Item]:
        """The prompt that has waited longest, and those that may share its call, in their order."""
        self._drop_cancelled()
        group: list[_Item] = []
        rest: deque[_Item] = deque()
        longest, bucket = 0, 0
        for item in self._waiting:
            pos = max(longest, len(item.query.ids))
            most = min(self.max_batch, self.engine.most_rows(pos)) if group else 1
            if len(group) < most and (not group or self.engine.bucket(item.query) == bucket):
                longest, bucket = pos, self.engine.bucket(item.query)
                group.append(item)
            else:
                rest.append(item)
        self._waiting = rest
        return group

    async def _run(self, group: Sequence[_Item]) -> None:
        self.watch(len(group))
        queries = [item.query for item in group]
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self.executor, self.engine.run, queries)
        except Exception as error:  # of the runtime, whose exceptions share no base: the callers get it
            for item in group:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        self._expected = self._requests
        for item, result in zip(group, results, strict=True):
            if not item.future.done():
                item.future.set_result(result)
                item.request.pending -= 1
                self._requests -= item.request.pending == 0

    def _drop_cancelled(self) -> None:
        if any(item.future.done() for item in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.future.done())
