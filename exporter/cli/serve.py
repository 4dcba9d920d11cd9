"""`export-circuit serve`: a bundle over HTTP, until a signal stops it."""

from __future__ import annotations

import importlib
import logging

import typer

from exporter.cli import serve_options as opts


def serve(
    folder: opts.ServedFolder,
    host: opts.Host = "127.0.0.1",
    port: opts.Port = 8000,
    fallback: opts.FallbackKind = "none",
    model: opts.FallbackModel = None,
    max_batch: opts.MaxBatch = 32,
    max_wait_ms: opts.MaxWait = 2.0,
    max_queue: opts.MaxQueue = 256,
    max_prompts: opts.MaxPrompts = 64,
    timeout: opts.Timeout = 10.0,
    threads: opts.ServingThreads = None,
    log_requests: opts.LogRequests = False,
) -> None:
    """Serve a bundle over HTTP: predictions, health, metrics, and a page of the API at /docs.

    Example: [bold]export-circuit serve folder/ --port 8000[/bold]
    """
    _require_extra()
    from exporter.serve.app import make_app
    from exporter.serve.server import bind_address, serve_app
    from exporter.serve.settings import Settings

    settings = Settings(
        fallback=fallback,
        dense_model=model,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_prompts=max_prompts,
        timeout=timeout,
        threads=threads,
        log_requests=log_requests,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with bind_address(host, port) as listener:  # before the model is opened, which takes longer
        serve_app(make_app(folder, settings), listener, timeout=timeout, announce=_announce)


def _announce(url: str) -> None:
    typer.echo(f"serving on {url}")


def _require_extra() -> None:
    """Raise MissingRuntimeError where the extra is not installed."""
    from exporter.errors import MissingRuntimeError

    for name in ("fastapi", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing = f"the package {error.name or name} is not installed, which serving needs"
            raise MissingRuntimeError(f"{missing}; pip install 'export-circuit[cpu,serve]'") from error
