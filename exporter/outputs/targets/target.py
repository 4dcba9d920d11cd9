"""What a target is: one runtime, or one kind of server, that a bundle is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from exporter.graph.options import Precision, Scales
from exporter.outputs.manifest import ExportInfo
from exporter.outputs.shape import BundleShape

Content = str | bytes | Mapping[str, Any]
Contents = dict[str, Content]
"""Texts, bytes, or JSON by file name. A name may hold folders: `onnx/config.json`."""


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file that a target wants beside the bundle's own model.onnx.

    name: where, with folders. precision, scales: its numbers; a precision of None stands for the numbers of the
    bundle's own file, which is then linked or copied, as it is where the numbers are the same. weights: the name of its
    external data, in which `{name}` is the file's own name without folders; None keeps the name that it has. Where
    `optional`, a file in reduced precision that answers otherwise than the circuit is left out, with a note.
    """

    name: str
    precision: Precision | None = None
    scales: Scales = "token"
    weights: str | None = None
    optional: bool = False

    def matches(self, export: ExportInfo) -> bool:
        """Whether a file of these numbers is the one that is wanted."""
        if self.precision in (None, export.precision):
            return self.precision != "int8" or self.scales == export.scales
        return False

    @property
    def weights_name(self) -> str | None:
        """The name of its external data, as its target wants it."""
        return None if self.weights is None else self.weights.format(name=PurePosixPath(self.name).name)


def _want_nothing(_: str) -> tuple[GraphFile, ...]:
    return ()


def _refuse_nothing(_: BundleShape) -> str | None:
    return None


def _say_nothing(_: BundleShape) -> str:
    return ""


@dataclass(frozen=True)
class BundleTarget:
    """A runtime that a bundle is for.

    write: its files, by what the bundle's ONNX file is; nothing where the model is not for it. Two targets may write
    JSON of the same name: their keys are put together, and where both have a key they must say the same.
    graphs: the ONNX files that it wants, for a model's name (of letters, digits, `-`, `_` and `.`).
    refuse: why it cannot take the model, and what to do, in a sentence that follows "it": `needs logits over the whole
    vocabulary; leave --logits answers out`. None where it takes it. Only asked of targets that the user names. What
    follows from options is found before a search begins; what depends on the searched circuit is left out with a note.
    describe: a paragraph of Markdown for the card on how to run it; nothing where the model is not for it.
    """

    write: Callable[[BundleShape], Contents]
    graphs: Callable[[str], tuple[GraphFile, ...]] = _want_nothing
    refuse: Callable[[BundleShape], str | None] = _refuse_nothing
    describe: Callable[[BundleShape], str] = _say_nothing
