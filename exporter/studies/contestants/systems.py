"""What answers prompts in a comparison: a network as a file, or a classifier of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exporter.bench.proxies import count_proxies
from exporter.errors import ExactnessError
from exporter.evidence.bag_of_words import TextModel, list_choices, mark_right, read_texts
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import CHUNK
from exporter.runtime.session import open_session, run_logits
from exporter.tasks import Tokenizer
from exporter.tasks.dataset import Dataset

TOLERANCE = 1e-3  # of a file's logits, of the largest one


@dataclass(frozen=True, eq=False)
class Built:
    """A system that can be called: on one prompt, as its user would. parameters: numbers that it holds in all."""

    call: Callable[[], object]
    parameters: int


class System(Protocol):
    """Something that answers prompts."""

    @property
    def parameters(self) -> int:
        """Parameters without embeddings, unembedding and constants."""

    def mark(self, prompts: Dataset) -> Tensor:
        """Whether it answers each prompt rightly: (prompt,) bool."""

    def build(self, folder: Path, prompts: Dataset, threads: int) -> Built:
        """Make it callable on the first of some prompts; its files go into the folder."""


@dataclass(frozen=True, eq=False)
class NetworkSystem:
    """A network, exported as `options` say and run in ONNX Runtime on token ids.

    tokens: the answers that it knows, where those are not all.
    """

    model: CircuitModel
    options: GraphOptions
    tokens: Sequence[int] | None = None

    @property
    def parameters(self) -> int:
        """As a manifest's `size` counts them."""
        return self.model.count_parameters()

    def mark(self, prompts: Dataset) -> Tensor:
        """See `System`."""
        return torch.cat([part.is_answer(part.predict(self._answer(part))) for part in prompts.split(CHUNK)])

    def build(self, folder: Path, prompts: Dataset, threads: int) -> Built:
        """Raises ExactnessError: the file gives other logits than the network."""
        path = folder / "network.onnx"
        export_onnx(fold_model(self.model), path, self.options)
        session, prompt = open_session(path, threads=threads), prompts[:1]
        mask = None if prompt.mask is None else prompt.mask.numpy()
        ids = prompt.input_ids.numpy()
        logits = self._answer(prompt)[:, -1]
        wanted = logits[:, list(self.options.answer_ids)] if self.options.answer_ids else logits
        apart = (torch.from_numpy(run_logits(session, ids, mask)[:, -1]) - wanted).abs().max()
        if not apart <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise ExactnessError(f"a contestant's file gives logits that are {float(apart):.3g} off; report this")
        return Built(lambda: run_logits(session, ids, mask), count_proxies(path).parameters)

    def _answer(self, part: Dataset) -> Tensor:
        """Logits at the answer positions, (prompt, step, vocab), with -inf for what it does not know."""
        logits = self.model.answer_logits(part.input_ids, part.mask, part.n_steps)
        if self.tokens is None:
            return logits
        known = torch.full_like(logits, -torch.inf)
        known[..., list(self.tokens)] = logits[..., list(self.tokens)]
        return known


@dataclass(frozen=True, eq=False)
class TextSystem:
    """A classifier of texts, called on a text as it is: reading it into features is part of the call."""

    text: TextModel
    tokenizer: Tokenizer

    @property
    def parameters(self) -> int:
        """All that it holds: it has no embedding."""
        return self.text.count_parameters()

    def mark(self, prompts: Dataset) -> Tensor:
        """See `System`."""
        return mark_right(prompts, self.text.answer(read_texts(prompts, self.tokenizer), list_choices(prompts)))

    def build(self, folder: Path, prompts: Dataset, threads: int) -> Built:
        """See `System`; there are no files, and it runs on one thread."""
        del folder, threads
        texts, choices = read_texts(prompts[:1], self.tokenizer), list_choices(prompts[:1])
        return Built(lambda: self.text.answer(texts, choices), self.parameters)
