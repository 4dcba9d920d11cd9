"""onnxruntime-web in headless Chromium: WASM, one thread. Its routes hand out the files; no server runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime_table.cases import Case
from runtime_table.readers import HERE, MODULES, Given, MissingError, join, split_batches, to_json

DIST = MODULES / "onnxruntime-web" / "dist"
SITE = "http://runtimes.test"
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}


def run_chromium(cases: Sequence[Case]) -> list[Given]:
    """Every case in one page."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise MissingError("pip install 'export-circuit[browser]'") from None
    names = (os.environ.get("EXPORT_CIRCUIT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, filter(None, names))), None)
    if chromium is None or not DIST.is_dir():
        raise MissingError("needs Chromium; make node-modules")
    source = (HERE / "graph.js").read_text(encoding="utf-8")
    found: list[Given] = []
    owners: list[int] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.route(f"{SITE}/**", lambda route: _hand_out(route, cases))
        page.goto(f"{SITE}/page.html")
        page.add_script_tag(url=f"{SITE}/ort.wasm.min.js")
        page.evaluate(f"() => {{ ort.env.wasm.wasmPaths = '{SITE}/'; ort.env.wasm.numThreads = 1; }}")
        for place, case in enumerate(cases):
            for batch in split_batches(case):
                call = [f"{SITE}/graph/{place}", to_json(case.feed(batch))]
                owners.append(place)
                try:
                    found.append(page.evaluate(f"([graph, feeds]) => ({_strip(source)})(ort, graph, feeds)", call))
                except Error as error:
                    found.append(str(error).splitlines()[0])
        browser.close()
    return join(found, owners, len(cases))


def _strip(source: str) -> str:
    """The function without the comments before it."""
    return source[source.index("async (") :].strip()


def _hand_out(route: Any, cases: Sequence[Case]) -> None:
    """A graph, a file of onnxruntime-web, or an empty page."""
    name = str(route.request.url).removeprefix(f"{SITE}/")
    if name.startswith("graph/"):
        route.fulfill(body=cases[int(name.removeprefix("graph/"))].graph.read_bytes(), content_type="application/onnx")
        return
    path = DIST / Path(name).name
    body = path.read_bytes() if path.is_file() else b"<!doctype html><title>runtimes</title>"
    route.fulfill(body=body, content_type=_TYPES.get(path.suffix, "application/octet-stream"))
