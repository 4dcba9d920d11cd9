"""What a target is: one runtime, or one kind of server, that a bundle is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from exporter.graph.options import GraphOptions, Precision, Scales
from exporter.outputs.shape import BundleShape

GENERATING = ("all", "last")  # logits of the whole vocabulary, out of which a token can be picked
Content = str | bytes | Mapping[str, Any]
Contents = dict[str, Content]
"""Texts, bytes, or JSON by file name. A name may hold folders: `onnx/config.json`."""


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file that a target wants beside the bundle's own model.onnx.

    name: where, with folders. precision, scales (in int8): its numbers; None stands for those of the bundle's own file,
    and where that has no scales for scales by token. weights: the name of its external data, in which `{name}` is the
    file's own name without folders; None keeps the name that it has. padded: its prompts differ in length, so that a
    graph without a mask gets one; and a classifier gets no keys and values of earlier calls, since it has only one.
    No other target's graph has inputs as Optimum makes them, see `GraphOptions.optimum`.
    Where the bundle's own file is what is wanted, it is linked or copied; any other is exported. Where `optional`, a
    file in reduced precision that answers otherwise than the circuit is left out, with a note.
    """

    name: str
    precision: Precision | None = None
    scales: Scales | None = None
    weights: str | None = None
    padded: bool = False
    optional: bool = False

    def adapt(self, own: GraphOptions) -> GraphOptions:
        """How it is exported where the bundle's own file is exported with these options."""
        form = own.form
        if self.padded and (form == "plain" or own.logits not in GENERATING):
            form = "masked"
        is_same = form == own.form  # only what is plain has one length
        length, opening = (own.length, own.opening) if is_same else (None, ())
        precision = self.precision or own.precision
        known = own.scales if own.precision == "int8" else "token"
        scales = (self.scales or known) if precision == "int8" else "tensor"
        in_fp32 = own.in_fp32 if precision == own.precision else ()
        numbers = replace(own, precision=precision, scales=scales, in_fp32=in_fp32)
        return replace(numbers, form=form, length=length, opening=opening, optimum=False)

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
    JSON of the same name: their keys are put together, and where both have a key the later in the registry says it.
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
