"""onnxruntime-web in headless Chromium: WASM, one thread, files from a static server on this machine."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from runtime_table.cases import Case
from runtime_table.readers import HERE, MODULES, Given, MissingError, join, split_batches, to_json

DIST = MODULES / "onnxruntime-web" / "dist"


class _Handler(SimpleHTTPRequestHandler):
    """/graph/N is the file of case N, anything else one of onnxruntime-web."""

    def __init__(self, *args: object, cases: Sequence[Case], **options: object) -> None:
        self.cases = cases
        super().__init__(*args, **options)  # type: ignore[arg-type]  # handed on as they are

    def translate_path(self, path: str) -> str:
        if path.startswith("/graph/"):
            return str(self.cases[int(path.removeprefix("/graph/"))].graph)
        return str(DIST / Path(path).name if path != "/page" else HERE / "page.html")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(cases: Sequence[Case]) -> Iterator[str]:
    """The server's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, cases=cases)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


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
    with sync_playwright() as playwright, serve(cases) as site:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{site}/page")
        page.add_script_tag(url=f"{site}/ort.wasm.min.js")
        page.evaluate(f"() => {{ ort.env.wasm.wasmPaths = '{site}/'; ort.env.wasm.numThreads = 1; }}")
        for place, case in enumerate(cases):
            for batch in split_batches(case):
                call = [f"{site}/graph/{place}", to_json(case.feed(batch))]
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
