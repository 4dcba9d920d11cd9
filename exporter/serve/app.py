"""The application: routes, and errors as JSON. `make_app` is for those who mount it in their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from exporter.files.names import MODEL
from exporter.serve.bundle import open_bundle
from exporter.serve.cgroup import count_processors
from exporter.serve.fallback import open_dense, read_memory
from exporter.serve.gate import Gate
from exporter.serve.metrics import Metrics
from exporter.serve.refusals import STATUSES, RequestError
from exporter.serve.schema import EXPECTED, ErrorResponse, PredictRequest, PredictResponse
from exporter.serve.service import Service
from exporter.serve.settings import Settings

LOG = logging.getLogger("exporter.serve")

PREDICT = "/v1/predict"
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in sorted({*STATUSES.values()})}
_CODES = {400: "bad_json", 404: "not_found", 405: "method_not_allowed"}
_SENTENCES = {
    400: "the body is no JSON that can be read; send an object like the one at /docs",
    404: "there is nothing here; /docs lists what there is",
    405: "this path is asked in another way; /docs says how",
}
_RETRY_SECONDS = "1"


def make_app(folder: str | Path, settings: Settings | None = None) -> FastAPI:
    """An application that serves the bundle in `folder`; the model is open when this returns.

    It may be mounted under a path of another application: what it needs starts with the first request. Raises
    InputError: the folder is no bundle, or the fallback's dense model is not there. Raises MissingRuntimeError: ONNX
    Runtime is missing.
    """
    settings = settings or Settings()
    threads = settings.threads or count_processors()
    bundle = open_bundle(folder, threads=threads)
    form, memory = bundle.engine.form, read_memory() >> 20
    LOG.info("opened model=%s form=%s threads=%d memory_mib=%d", bundle.id, form, threads, memory)
    if bundle.engine.batch_dependent:
        LOG.warning("one prompt in a call: int8 scales are of a whole call; export with --int8-scales token to batch")
    dense = None
    if settings.fallback == "dense":
        before = read_memory()
        dense = open_dense(bundle.folder / MODEL, dense_model=settings.dense_model, threads=threads)
        taken = (read_memory() - before) >> 20
        LOG.info("opened fallback=%s more_memory_mib=%d", bundle.origin.model.name, taken)
    return _Routes(Service(bundle, settings, Metrics(bundle.id), dense)).app


class _Routes:
    """The application around a service."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings, self.metrics = service, service.settings, service.metrics
        self.is_closed = False
        self.app = FastAPI(
            title=f"export-circuit: {service.bundle.id}",
            description="Predictions of one circuit. Whatever is no prediction is JSON with a code and a sentence.",
            version="1",
            docs_url=None,  # FastAPI's own pages load scripts from elsewhere; see `page.html`
            redoc_url=None,
            lifespan=self._live,
        )
        self.app.state.service = service
        self.app.add_middleware(
            Gate,
            max_body=self.settings.max_body,
            timeout=self.settings.timeout,
            refuse=lambda problem: self.metrics.count_refusal(problem.code),
            watch=self._watch,
        )
        self._add_routes()
        self.app.add_exception_handler(RequestError, self._tell)  # type: ignore[arg-type]  # of this class only
        self.app.add_exception_handler(RequestValidationError, self._tell_invalid)  # type: ignore[arg-type]  # likewise
        self.app.add_exception_handler(HTTPException, self._tell_http)  # type: ignore[arg-type]  # likewise

    def _add_routes(self) -> None:
        add: Any = self.app.add_api_route
        add(PREDICT, self.predict, methods=["POST"], response_model=PredictResponse, responses=_ERRORS)
        add("/v1/model", self.describe, methods=["GET"])
        add("/health", self.tell_health, methods=["GET"])
        add("/ready", self.tell_ready, methods=["GET"], responses={503: {"model": ErrorResponse}})
        add("/metrics", self.tell_metrics, methods=["GET"], response_class=Response)
        add("/docs", self.show_page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)

    @asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        await self.service.warm_up()
        yield
        self.is_closed = True
        self.service.close()

    def _watch(self, path: str, status: int, seconds: float) -> None:
        if path == PREDICT:
            self.metrics.count_request(status, seconds)
        if self.settings.log_requests:
            LOG.info("request path=%s status=%d ms=%.1f", ascii(path)[1:-1][:60], status, 1000 * seconds)

    async def predict(self, request: PredictRequest) -> Response:
        """The likeliest answers to one prompt or several."""
        try:
            async with asyncio.timeout(self.settings.timeout):
                predictions = await self.service.predict(request)
        except TimeoutError as error:
            raise RequestError("timeout", f"there was no answer within {self.settings.timeout:g} s") from error
        response = PredictResponse.model_construct(model=self.service.bundle.id, predictions=predictions)
        return Response(response.__pydantic_serializer__.to_json(response), media_type="application/json")

    async def describe(self) -> dict[str, Any]:
        """What is served: the task, its answers, which prompts are taken, the accuracy on held-out prompts."""
        return {**self.service.bundle.describe(), "fallback": self.settings.fallback}

    async def tell_health(self) -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    async def tell_ready(self) -> dict[str, str]:
        """Whether requests are taken: the model is open, and the server is not about to stop."""
        if self.is_closed:
            raise RequestError("not_ready", "the server stops")
        return {"status": "ready", "model": self.service.bundle.id}

    async def tell_metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def show_page(self) -> HTMLResponse:
        """The API as a page, which loads nothing from elsewhere."""
        return HTMLResponse(files("exporter.serve").joinpath("page.html").read_text(encoding="utf-8"))

    async def _tell(self, request: Request, problem: RequestError) -> JSONResponse:
        self.metrics.count_refusal(problem.code)
        headers = {"retry-after": _RETRY_SECONDS} if problem.status == 503 else None
        return JSONResponse(problem.to_json(), problem.status, headers)

    async def _tell_invalid(self, request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return await self._tell(request, RequestError("bad_json", _SENTENCES[400]))
        field = str(first["loc"][1]) if len(first["loc"]) > 1 else ""
        if first["type"] == "extra_forbidden":
            text = f"{ascii(field)[:40]} is no field; there are {', '.join(filter(None, EXPECTED))}"
        elif first["type"] == "value_error":
            text = str(first["msg"]).removeprefix("Value error, ")
        else:
            text = f"{field or 'the body'}: {EXPECTED[field]}"
        return await self._tell(request, RequestError("invalid", text))

    async def _tell_http(self, request: Request, error: HTTPException) -> JSONResponse:
        sentence = _SENTENCES.get(error.status_code, str(error.detail))
        response = await self._tell(request, RequestError(_CODES.get(error.status_code, "invalid"), sentence))
        response.headers.update(error.headers or {})
        return response
