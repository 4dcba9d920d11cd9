"""From a request to predictions: prompts become tokens, tokens share calls, columns become words.

What the circuit disowns goes to the dense model where there is one, and is marked; else the request is refused.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from exporter.serve.batching import Batcher, Result
from exporter.serve.bundle import ServedBundle
from exporter.serve.engine import Engine, Query, Ranking
from exporter.serve.metrics import Metrics
from exporter.serve.refusals import RequestError
from exporter.serve.schema import Choice, Prediction, PredictRequest
from exporter.serve.settings import Settings

Source = Literal["circuit", "dense"]


class PromptError(RequestError):
    """A problem of one of a request's prompts, `prompt`, counted from 0."""

    def __init__(self, problem: RequestError, prompt: int) -> None:
        super().__init__(problem.code, problem.message)
        self.prompt = prompt

    def to_json(self) -> dict[str, dict[str, str]]:
        """The body of the response."""
        return {"error": {**super().to_json()["error"], "prompt": self.prompt}}  # type: ignore[dict-item]  # a dict in a dict


@dataclass(frozen=True, eq=False)
class Service:
    """A bundle, perhaps with its dense model, behind queues; both run in the one thread of `executor`."""

    bundle: ServedBundle
    settings: Settings
    metrics: Metrics
    dense: Engine | None = None
    executor: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "onnxruntime"))
    _queues: dict[Source, Batcher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engines: dict[Source, Engine | None] = {"circuit": self.bundle.engine, "dense": self.dense}
        for source, engine in engines.items():
            if engine is not None:
                self._queues[source] = self._make_queue(source, engine)
        self.metrics.watch_queue(lambda: sum(map(len, self._queues.values())))

    def _make_queue(self, source: Source, engine: Engine) -> Batcher:
        settings = self.settings
        return Batcher(
            engine,
            self.executor,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            watch=self.metrics.watch_batches(source),
        )

    async def predict(self, request: PredictRequest) -> list[Prediction]:
        """A prediction for each prompt. Raises RequestError: the whole request is refused, for the first reason."""
        queries = self._read(request)
        answered: dict[int, tuple[Source, Ranking]] = {}
        left: dict[int, RequestError | None] = dict.fromkeys(range(len(queries)))
        for source, queue in self._queues.items():
            results = await self._ask(queue, {index: queries[index] for index in left})
            answered |= {i: (source, result) for i, result in results.items() if isinstance(result, Ranking)}
            # the circuit's reason stays: it is what the client can do something about
            left = {i: left[i] or result for i, result in results.items() if isinstance(result, RequestError)}
            if not all(problem is None or problem.is_out_of_reach for problem in left.values()):
                break
        for index, problem in left.items():
            assert problem is not None
            raise PromptError(problem, index)
        for source in self._queues:
            self.metrics.count_prompts(source, sum(found == source for found, _ in answered.values()))
        return [self._word(queries[i], *answered[i]) for i in range(len(queries))]

    async def warm_up(self) -> None:
        """One call of each engine, so that the first request does not pay for what a runtime sets up."""
        for queue in self._queues.values():
            await queue.submit([Query((0,) * (queue.engine.pinned or 1))])

    def close(self) -> None:
        """End the worker thread, after what it has begun."""
        self.executor.shutdown()

    def _read(self, request: PredictRequest) -> list[Query]:
        texts, tokens = request.list_texts(), request.list_tokens()
        n, most = len(texts) + len(tokens), self.settings.max_prompts
        if n > most:
            raise RequestError("too_many_prompts", f"the request has {n} prompts, and at most {most} are taken")
        if not n:
            raise RequestError("empty_prompt", "the request has no prompts; give at least one")
        if request.text is not None:
            if (template := self.bundle.reader.template) is None:
                raise RequestError("invalid", "this model has no template to put around a text; give prompt instead")
            texts = [template.fill(text) for text in texts]
        return [Query(ids, request.top) for ids in (*map(self.bundle.read, texts), *tokens)]

    async def _ask(self, queue: Batcher, queries: dict[int, Query]) -> dict[int, Result]:
        """The results of queries by index; those that the engine does not take are not queued."""
        results: dict[int, Result] = {}
        for index, query in queries.items():
            try:
                queue.engine.check(query.ids)
            except RequestError as problem:
                results[index] = problem
        rest = [index for index in queries if index not in results]
        return results | dict(zip(rest, await queue.submit([queries[index] for index in rest]), strict=True))

    def _word(self, query: Query, source: Source, ranking: Ranking) -> Prediction:
        choices = [self._choose(source, *pair) for pair in zip(ranking.columns, ranking.probabilities, strict=True)]
        best = choices[0]
        return Prediction.model_construct(**best.__dict__, choices=choices, tokens=len(query.ids), source=source)

    def _choose(self, source: Source, column: int, probability: float) -> Choice:
        ids, labels = self._queues[source].engine.answer_ids, self.bundle.labels
        token = column if ids is None else int(ids[column])
        label = labels[column] if source == "circuit" and column < len(labels) else None
        return Choice.model_construct(
            answer=self.bundle.name_token(token), label=label, token_id=token, probability=probability
        )
