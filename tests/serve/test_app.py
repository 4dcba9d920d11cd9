"""The HTTP interface: every status, with a plain sentence; whatever is sent, never a 500."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ANSWERS, KNOWN, HeldEngine, write_bundle
from tiers import examples
from waits import HANG

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from exporter.errors import InputError
from exporter.graph.options import GraphOptions, Logits
from exporter.runtime.session import open_session, run_logits
from exporter.serve.app import make_app
from exporter.serve.settings import Settings
from exporter.tasks.template import Template

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("serve") / "bundle", "masked")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows some tokens alone, and answers with four."""
    return write_bundle(tmp_path_factory.mktemp("serve") / "cut", "plain")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(make_app(folder, Settings(max_body=4096, max_prompts=8))) as made:
        yield made


def require_refusal(response: Any, status: int, code: str, words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == code and re.search(words, error["message"]), error
    assert len(error["message"]) < 200 and "\n" not in error["message"]


def test_an_answer_is_what_onnx_runtime_says(client: TestClient, folder: Path) -> None:
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    response = client.post("/v1/predict", json={"token_ids": prompts, "top": 3})
    assert response.status_code == 200
    body, session = response.json(), open_session(folder / "model.onnx")
    assert body["model"] == client.get("/v1/model").json()["id"] == client.get("/ready").json()["model"]
    for ids, found in zip(prompts, body["predictions"], strict=True):
        logits = run_logits(session, np.array([ids]))[0, -1].astype(np.float64)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-shares, kind="stable")[:3]
        assert [choice["token_id"] for choice in found["choices"]] == best.tolist()
        assert [choice["answer"] for choice in found["choices"]] == [f"w{token}" for token in best]
        np.testing.assert_allclose([choice["probability"] for choice in found["choices"]], shares[best], rtol=1e-4)
        first = found["choices"][0]
        assert {key: found[key] for key in first} == first
        assert (found["tokens"], found["source"]) == (len(ids), "circuit")


def test_text_and_token_ids_are_the_same_prompt(client: TestClient) -> None:
    given = [{"prompt": "w3 w1 w4"}, {"prompt": ["w3 w1 w4"]}, {"token_ids": [3, 1, 4]}, {"token_ids": [[3, 1, 4]]}]
    answers = [client.post("/v1/predict", json=one).json() for one in given]
    assert answers == [answers[0]] * 4


def test_answers_are_named_where_the_graph_has_some_only(cut: Path) -> None:
    with TestClient(make_app(cut)) as client:
        (found,) = client.post("/v1/predict", json={"prompt": "w1 w2"}).json()["predictions"]
        assert {choice["token_id"] for choice in found["choices"]} == set(ANSWERS)
        assert sum(choice["probability"] for choice in found["choices"]) == pytest.approx(1)
        said = client.get("/v1/model").json()
    assert said["answers"] == [f"w{token}" for token in ANSWERS]
    assert (said["guards"], said["form"], said["tokens"]) == (["in_vocabulary"], "plain", {"least": 1, "most": 24})


@pytest.mark.parametrize("logits", ["classes", "answers"])
def test_a_text_is_put_into_the_template_once(logits: Logits, tmp_path: Path) -> None:
    """A classifier's tokenizer puts the template around a text itself; no request's prompt may have it twice."""
    labels = ("no", "yes", "both", "none") if logits == "classes" else ()
    graph = GraphOptions(form="masked", logits=logits, answer_ids=ANSWERS, labels=labels)
    bundle = make_bundle(tmp_path / "b", form="masked", graph=graph, template=Template("w1 ", " w2"))
    with TestClient(make_app(bundle.folder)) as client:
        asked = [{"text": "w7 w8"}, {"prompt": "w1 w7 w8 w2"}, {"token_ids": [1, 7, 8, 2]}]
        answers = [client.post("/v1/predict", json=one).json() for one in asked]
        said = client.get("/v1/model").json()
    assert answers == [answers[0]] * 3 and answers[0]["predictions"][0]["tokens"] == 4
    assert (said["template"], said["labels"]) == ({"prefix": "w1 ", "suffix": " w2"}, list(labels))
    named = {choice["token_id"]: choice["label"] for choice in answers[0]["predictions"][0]["choices"]}
    assert named == dict(zip(ANSWERS, labels or [None] * 4, strict=True))


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, "invalid", "exactly one of prompt, text and token_ids"),
        ({"prompt": "w1", "token_ids": [1]}, "invalid", "exactly one"),
        ({"prompt": 5}, "invalid", "prompt: give a text or a list of texts"),
        ({"token_ids": [1.5]}, "invalid", "token_ids: give a list of whole numbers"),
        ({"token_ids": [True]}, "invalid", "token_ids: give"),
        ({"prompt": "w1", "top": 0}, "invalid", "top: give a whole number from 1 to 100"),
        ({"prompt": "w1", "temperature": 1}, "invalid", "'temperature' is no field; there are prompt, text"),
        ({"text": "w1"}, "invalid", "no template"),
        ([], "invalid", "the body: send an object"),
        ({"prompt": []}, "empty_prompt", "no prompts"),
        ({"prompt": ["w1", ""]}, "empty_prompt", "no tokens"),
        ({"token_ids": [37]}, "unknown_token", "token id 37 .* from 0 to 36"),
        ({"token_ids": [-1]}, "unknown_token", "token id -1"),
        ({"token_ids": [10**30]}, "unknown_token", "token id 1000"),
        ({"prompt": "w1 " * 25}, "wrong_length", "25 tokens, .* at most 24"),
        ({"prompt": ["w1"] * 9}, "too_many_prompts", "9 prompts, and at most 8"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    client: TestClient, body: object, code: str, words: str
) -> None:
    require_refusal(client.post("/v1/predict", json=body), 422, code, words)


def test_the_prompt_at_fault_is_named(client: TestClient) -> None:
    response = client.post("/v1/predict", json={"token_ids": [[1, 2], [99], [3]]})
    assert response.json()["error"]["prompt"] == 1


def test_other_statuses(client: TestClient) -> None:
    require_refusal(client.post("/v1/predict", content=b"{", headers=JSON), 400, "bad_json", "no JSON")
    require_refusal(client.post("/v1/predict", content=b"\xff", headers=JSON), 400, "bad_json", "no JSON")
    require_refusal(client.post("/v1/predict", content=b"[" * 4000, headers=JSON), 400, "bad_json", "no JSON")
    require_refusal(client.get("/nothing"), 404, "not_found", "nothing here")
    require_refusal(client.get("/v1/predict"), 405, "method_not_allowed", "another way")
    require_refusal(client.post("/v1/predict", content=b" " * 4097, headers=JSON), 413, "too_large", "4,096 bytes")
    parts = (b" " * 1000 for _ in range(5))  # without a length that is announced
    require_refusal(client.post("/v1/predict", content=parts, headers=JSON), 413, "too_large", "4,096 bytes")
    assert client.get("/health").json() == {"status": "ok"}


def test_out_of_vocabulary_is_an_error_that_says_so(cut: Path) -> None:
    with TestClient(make_app(cut)) as client:
        response = client.post("/v1/predict", json={"token_ids": [[1, 2], [1, KNOWN[-1] + 1]]})
        require_refusal(response, 422, "out_of_vocabulary", "does not know all tokens")
        assert response.json()["error"]["prompt"] == 1


def test_a_full_queue_and_a_late_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is late when the test says so, not when the machine was slow."""
    limits, limit = list[asyncio.Timeout](), asyncio.timeout

    def note_limit(_seconds: float) -> asyncio.Timeout:
        limits.append(limit(HANG))
        return limits[-1]

    monkeypatch.setattr(asyncio, "timeout", note_limit)
    app = make_app(folder, Settings(max_batch=1, max_queue=1, max_prompts=1, timeout=1))
    service = app.state.service
    queue = service._queues["circuit"]
    queue.engine = engine = HeldEngine(queue.engine)

    async def play() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            calls = [asyncio.create_task(client.post("/v1/predict", json={"prompt": "w1"}))]
            await asyncio.to_thread(engine.begun.wait, HANG)
            calls.append(asyncio.create_task(client.post("/v1/predict", json={"prompt": "w1"})))
            async with limit(HANG):
                while not len(queue):
                    await asyncio.sleep(0.001)
            refused = await client.post("/v1/predict", json={"prompt": "w1"})
            for running in limits:
                with suppress(RuntimeError):  # it is over
                    running.reschedule(asyncio.get_running_loop().time())
            late = await asyncio.gather(*calls)
            engine.go.set()
            return [refused, *late, await client.post("/v1/predict", json={"prompt": "w1"})]

    refused, first, second, after = asyncio.run(play())
    require_refusal(refused, 503, "queue_full", "try again in a second")
    assert refused.headers["retry-after"] == "1"
    require_refusal(first, 504, "timeout", "within 1 s$")
    require_refusal(second, 504, "timeout", "within 1 s$")
    assert after.status_code == 200
    service.close()


def test_a_body_that_does_not_come_is_not_waited_for(folder: Path) -> None:
    app, sent = make_app(folder, Settings(timeout=0.05)), list[Any]()

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]  # what a server gives
    assert sent[0]["status"] == 408 and json.loads(sent[1]["body"])["error"]["code"] == "too_slow"


def test_what_nobody_expected_is_json_and_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(folder)

    async def fail(_: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    with TestClient(app) as client:
        monkeypatch.setattr(type(app.state.service), "predict", lambda self, request: fail(request))
        require_refusal(client.post("/v1/predict", json={"prompt": "w1"}), 500, "internal_error", "log says more")
    assert "unexpected ZeroDivisionError: one two" in caplog.text


def test_prompts_are_never_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="exporter.serve")
    with TestClient(make_app(folder, Settings(log_requests=True))) as client:
        client.post("/v1/predict", json={"prompt": "w3 secret"})
        client.post("/v1/predict", json={"prompt": "secret " * 30})
        client.get("/secret%0Aline")
    lines = [record.getMessage() for record in caplog.records if record.name == "exporter.serve"]
    assert [re.sub(r"ms=.*", "", line) for line in lines if line.startswith("request")] == [
        "request path=/v1/predict status=200 ",
        "request path=/v1/predict status=422 ",
        "request path=/secret\\nline status=404 ",
    ]
    assert not any("secret " in line or "\n" in line for line in lines)


def test_metrics_count_what_was_done(folder: Path) -> None:
    with TestClient(make_app(folder)) as client:
        client.post("/v1/predict", json={"token_ids": [[1], [2], [3]]})
        client.post("/v1/predict", json={"token_ids": [99]})
        text = client.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["export_circuit_requests_total", "200"] == found["export_circuit_requests_total", "422"] == 1
    assert found["export_circuit_refusals_total", "unknown_token"] == 1
    assert found["export_circuit_prompts_total", "circuit"] == 3
    assert found["export_circuit_request_seconds_count",] == 2
    assert found["export_circuit_batch_prompts_sum", "circuit"] == 4  # with the one that warms up
    assert found["export_circuit_queue_prompts",] == 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_it_can_be_mounted_without_its_lifespan(folder: Path) -> None:
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/circuit", make_app(folder))
    client = TestClient(outer)
    assert client.post("/circuit/v1/predict", json={"prompt": "w1"}).status_code == 200
    assert 'requests_total{status="200"} 1.0' in client.get("/circuit/metrics").text


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "//" not in re.sub(r"// Everything.*", "", page)
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/v1/predict", "/v1/model", "/health", "/ready", "/metrics"}
    assert {"400", "413", "422", "503", "504"} <= set(api["paths"]["/v1/predict"]["post"]["responses"])
    example = api["components"]["schemas"]["PredictRequest"]["examples"][0]
    assert client.post("/v1/predict", json=example).status_code in (200, 422)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
FIELDS = st.dictionaries(st.sampled_from(["prompt", "text", "token_ids", "top", "x"]), VALUES)
BODIES = (FIELDS | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary()
TOKENS = st.lists(st.integers(-2, 40), max_size=30) | st.lists(st.lists(st.integers(-2, 40), max_size=30), max_size=10)
NEARLY = st.fixed_dictionaries({"token_ids": TOKENS}, optional={"top": st.integers(-1, 101)})
ALL_BODIES = BODIES | NEARLY.map(lambda value: json.dumps(value).encode())


@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=ALL_BODIES, kind=st.sampled_from(["application/json", "text/plain", "application/x-www-form-urlencoded"]))
def test_no_body_makes_a_500(body: bytes, kind: str, client: TestClient) -> None:
    response = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert response.status_code in (200, 400, 413, 422), response.text
    if response.status_code == 200:
        assert all(0 <= one["probability"] <= 1 for one in response.json()["predictions"])
    else:
        assert len(response.json()["error"]["message"]) < 300


def test_a_bad_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    def copy(name: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for path in folder.iterdir():
            (made / path.name).write_bytes(path.read_bytes())
        return made

    with pytest.raises(InputError, match="no folder"):
        make_app(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read .*model\.json"):
        make_app(tmp_path)
    (copy("text") / "model.json").write_text("{}")
    with pytest.raises(InputError, match="not a manifest"):
        make_app(tmp_path / "text")
    (copy("half") / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json.*copy the whole bundle"):
        make_app(tmp_path / "half")
    with (copy("other") / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(InputError):
        make_app(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fallback": "sparse"}, "choose from none, dense"),
        ({"max_batch": 0}, "max_batch must be a whole number from 1"),
        ({"max_wait_ms": -1}, "max_wait_ms is -1"),
        ({"timeout": 0}, "timeout 0"),
        ({"max_prompts": 300}, "max_queue 256"),
        ({"dense_model": "gpt2"}, "give fallback='dense' too"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**changes)
