"""Batching: each answer is that of the prompt alone, whatever its company; a lone prompt does not wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import KNOWN, HeldEngine, open_engine, write_bundle
from tiers import examples

from exporter.serve.batching import Batcher, Result
from exporter.serve.engine import Engine, Query, Ranking, rank
from exporter.serve.refusals import RequestError

FORMS = ("masked", "past", "plain", "int8-token", "int8-tensor")
PROMPTS = st.lists(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=24).map(tuple), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: open_engine(write_bundle(folder / name, name), name) for name in FORMS}


def ask(engine: Engine, requests: list[list[Query]], sizes: list[int], **options: float) -> list[list[Result]]:
    """The results of requests that come at once."""
    limits = {"max_batch": 8, "max_wait": 0.002, "max_queue": 1000} | options

    async def ask_all() -> list[list[Result]]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(engine, executor, watch=sizes.append, **limits)  # type: ignore[arg-type]
            return list(await asyncio.gather(*map(batcher.submit, requests)))

    return asyncio.run(ask_all())


def require_same(found: Result, alone: Result) -> None:
    """The same answers in the same order, but where the alone ones are equal to rounding."""
    assert isinstance(found, Ranking) and isinstance(alone, Ranking)
    np.testing.assert_allclose(found.probabilities, alone.probabilities, rtol=1e-4, atol=1e-6)
    for mine, other, share in zip(found.columns, alone.columns, alone.probabilities, strict=True):
        assert mine == other or np.isclose(share, alone.probabilities, rtol=1e-4).sum() > 1


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=examples(40), deadline=None)
@given(prompts=PROMPTS, top=st.integers(1, 40), split=st.integers(1, 4))
def test_an_answer_is_that_of_the_prompt_alone(
    name: str, prompts: list[tuple[int, ...]], top: int, split: int, engines: dict[str, Engine]
) -> None:
    queries, sizes = [Query(ids, top) for ids in prompts], list[int]()
    requests = [queries[start : start + split] for start in range(0, len(queries), split)]
    found = [result for results in ask(engines[name], requests, sizes) for result in results]
    assert sum(sizes) == len(queries) and max(sizes) <= (1 if name == "int8-tensor" else 8)
    for result, query in zip(found, queries, strict=True):
        require_same(result, engines[name].run([query])[0])


@pytest.mark.parametrize("name", ["masked", "int8-token"])
def test_prompts_that_come_together_share_a_call(name: str, engines: dict[str, Engine]) -> None:
    sizes: list[int] = []
    ask(engines[name], [[Query((1, 2, 3, 4))] for _ in range(20)], sizes)
    assert sizes == [8, 8, 4]


def test_a_plain_graph_takes_prompts_of_one_length_in_a_call(engines: dict[str, Engine]) -> None:
    sizes: list[int] = []
    ask(engines["plain"], [[Query((1,) * n)] for n in (3, 4, 3, 5, 4, 3)], sizes)
    assert sizes == [3, 2, 1]


def test_a_call_is_bounded(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("exporter.serve.engine.MOST_TOKENS", 48)
    ask(engines["masked"], [[Query((1,) * n)] for n in (12, 12, 12, 12, 12)], sizes)
    monkeypatch.setattr("exporter.serve.engine.MOST_LOGITS", 2 * 12 * 37)
    ask(engines["past"], [[Query((1,) * n)] for n in (12, 12, 12)], sizes)  # logits at all positions
    assert sizes == [4, 1, 2, 1]


def test_a_lone_request_never_waits_and_a_crowd_waits_for_its_own(engines: dict[str, Engine]) -> None:
    """With a wait that no test would live to see the end of."""
    sizes: list[int] = []

    async def come_again(batcher: Batcher, times: int) -> None:
        for _ in range(times):
            await batcher.submit([Query((1, 2, 3))])

    async def play() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(engines["masked"], executor, 32, 1e4, 100, watch=sizes.append)
            await come_again(batcher, 3)
            await batcher.submit([Query((1, 2))] * 5)  # several prompts of one request are no crowd
            await come_again(batcher, 2)
            await asyncio.gather(*(come_again(batcher, 4) for _ in range(6)))

    asyncio.run(play())
    assert sizes == [1, 1, 1, 5, 1, 1, 6, 6, 6, 6]


def test_a_full_queue_takes_no_more_and_drops_who_has_gone(engines: dict[str, Engine]) -> None:
    engine = HeldEngine(engines["masked"])

    async def play() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(engine, executor, max_batch=1, max_wait=0, max_queue=2)
            running = asyncio.create_task(batcher.submit([Query((1,))]))
            await asyncio.to_thread(engine.begun.wait)
            waiting = [asyncio.create_task(batcher.submit([Query((2,))])) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="2 prompts wait already") as refused:
                await batcher.submit([Query((3,))])
            assert (refused.value.code, refused.value.status) == ("queue_full", 503)
            waiting[0].cancel()
            await asyncio.sleep(0)
            last = asyncio.create_task(batcher.submit([Query((4,))]))  # in the place of the one that has gone
            await asyncio.sleep(0)
            engine.go.set()
            done = await asyncio.gather(running, waiting[1], last)
            assert [len(results) for results in done] == [1, 1, 1]
            assert engine.calls == [1, 1, 1] and not batcher._requests

    asyncio.run(play())


def test_what_the_runtime_raises_reaches_those_who_asked_and_nobody_else(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["plain"]

    def fail_at_threes(queries: list[Query]) -> list[Result]:
        if len(queries[0].ids) == 3:
            raise RuntimeError("broken")
        return Engine.run(engine, queries)

    monkeypatch.setattr(engine, "run", fail_at_threes)

    async def play() -> list[object]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(engine, executor, 8, 0.002, 100)
            calls = (batcher.submit([Query((1,) * n)]) for n in (3, 4, 3, 4))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    found = asyncio.run(play())
    assert [isinstance(one, RuntimeError) for one in found] == [True, False, True, False]


def test_a_prompt_that_the_graph_disowns_is_told_apart_from_its_neighbours(engines: dict[str, Engine]) -> None:
    unknown = Query((1, KNOWN[-1] + 5))
    first, second, third = engines["plain"].run([Query((1, 2)), unknown, Query((2, 3))])
    assert isinstance(first, Ranking) and isinstance(third, Ranking)
    assert isinstance(second, RequestError)
    assert (second.code, second.status, second.is_out_of_reach) == ("out_of_vocabulary", 422, True)


@given(logits=st.lists(st.integers(-3, 3), min_size=1, max_size=30), top=st.integers(1, 40))
def test_ranks_are_those_of_a_stable_sort(logits: list[int], top: int) -> None:
    found = rank(np.array(logits, np.float32), top)
    order = sorted(range(len(logits)), key=lambda column: -logits[column])[:top]
    weights = np.exp(np.array(logits, np.float64))
    assert list(found.columns) == order and found.columns[0] == np.argmax(logits)
    np.testing.assert_allclose(found.probabilities, weights[order] / weights.sum(), rtol=1e-5)
