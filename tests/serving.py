"""Small bundles to be served, and engines that can be held up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from bundles import make_bundle
from tiny import VOCAB
from waits import HANG

from exporter.graph.options import Form, GraphOptions
from exporter.runtime.session import open_session
from exporter.serve.engine import Engine, Query, Ranking
from exporter.serve.refusals import RequestError

KNOWN = tuple(range(20))  # the vocabulary of a bundle that is cut down
ANSWERS = (3, 5, 7, 11)
FORMS: dict[str, GraphOptions] = {
    "masked": GraphOptions(form="masked", logits="last"),
    "past": GraphOptions(form="past", logits="all"),
    "plain": GraphOptions(form="plain", logits="answers", answer_ids=ANSWERS, vocabulary=KNOWN),
    "int8-token": GraphOptions(form="masked", logits="last", precision="int8", scales="token", target="ort"),
    "int8-tensor": GraphOptions(form="masked", logits="last", precision="int8", scales="tensor", target="ort"),
}


def write_bundle(folder: Path, name: str = "masked") -> Path:
    """A bundle of the tiny GPT-2, 24 tokens at most."""
    options = FORMS[name]
    form: Form = options.form
    return make_bundle(folder, "gpt2", form, graph=options).folder


def open_engine(folder: Path, name: str) -> Engine:
    return Engine(open_session(folder / "model.onnx", threads=1), batch_dependent=name == "int8-tensor")


class HeldEngine(Engine):
    """An engine whose calls wait until they are let go. `calls` are the sizes of those that began."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.session, batch_dependent=engine.batch_dependent)
        self.begun, self.go, self.calls = threading.Event(), threading.Event(), list[int]()

    def run(self, queries: Sequence[Query]) -> list[Ranking | RequestError]:
        self.calls.append(len(queries))
        self.begun.set()
        assert self.go.wait(HANG)
        return super().run(queries)


__all__ = ["ANSWERS", "KNOWN", "VOCAB", "HeldEngine", "open_engine", "write_bundle"]
