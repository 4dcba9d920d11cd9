"""The work that a contestant cannot avoid: FLOPs of its matrix products, and bytes that it has to read.

Counted from the CircuitModel, not from a graph, so that a graph which computes more than it needs to is seen to: its
share of the machine's rate is smaller. All positions up to the last attention, the answer position from there on,
the rows of the unembedding that are read; positions of a common opening are not computed (docs/design.md, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.graph.options import Logits
from exporter.network.attention import Attention
from exporter.network.model import CircuitModel
from exporter.network.step import Sublayer

_BYTES = {"fp32": 4, "int8": 1, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """FLOPs of one call (2 a multiply-add), and the bytes of weights, embedding rows and logits that it touches."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


def count_work(
    model: CircuitModel,
    batch: int,
    pos: int,
    *,
    logits: Logits = "all",
    n_answers: int | None = None,
    opening: int = 0,
    precision: str = "fp32",
) -> Work:
    """The work of one call on (batch, pos) prompts, of which `opening` positions are known beforehand.

    n_answers: rows of the unembedding that are read; None for all. Activations are taken to stay in caches.
    """
    own = pos - opening  # positions that differ between prompts
    steps = list(model.steps)
    attends = [index for index, step in enumerate(steps) if step.attends]
    last_attending = attends[-1] if attends else -1
    flops = 0
    for index, step in enumerate(steps):
        queries = own if logits == "all" or index < last_attending else 1
        keys = own if attends and index <= last_attending else queries
        flops += sum(_count_sublayer(s, queries, keys, pos) for s in step.sublayers)
    d_vocab, d_model = model.W_U.shape
    rows = n_answers or d_vocab
    answered = own if logits == "all" else 1
    flops += 2 * answered * rows * d_model
    weights = sum(p.numel() for s in model.sublayers() for p in s.parameters()) + rows * d_model
    moved = _BYTES[precision] * (weights + batch * own * d_model) + 4 * batch * answered * rows
    return Work(flops=batch * flops, bytes=moved)


def _count_sublayer(sublayer: Sublayer, queries: int, keys: int, pos: int) -> int:
    """FLOPs of one prompt: queries at so many positions, keys and values computed at `keys`, attending to all `pos`."""
    if isinstance(sublayer, Attention):
        asked = sublayer.W_Q.numel() + sublayer.W_O.numel()
        read = sublayer.W_K.numel() + sublayer.W_V.numel()
        return 2 * queries * asked + 2 * keys * read + 4 * queries * pos * sublayer.W_Q.shape[1]
    return 2 * queries * sum(p.numel() for p in sublayer.parameters() if p.ndim == 2)
