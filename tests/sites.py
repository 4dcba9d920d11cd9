"""A folder served as any static server does it, with npm's packages at /vendor, and nothing else of the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    """`beside` are files that stand elsewhere, by their path on the server."""

    def __init__(self, *args: object, beside: Mapping[str, Path], **options: object) -> None:
        self.beside = beside
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        return str(self.beside.get(path.split("?")[0]) or super().translate_path(path))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve_folder(folder: Path, beside: Mapping[str, Path]) -> Iterator[str]:
    """The address of the folder."""
    handler = partial(_Handler, directory=str(folder), beside=beside)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
