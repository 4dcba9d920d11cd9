"""Where the circuit's heads look, token by token, on one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.evidence.shown import SCALE, ShownHead
from exporter.outputs.manifest import Manifest

_TOP = len(SCALE) - 1


@dataclass(frozen=True)
class HeadRow:
    """One head: its weights from the last token, in percent, and those of every token as the manifest has them."""

    name: str
    percents: list[int]
    rows: list[str]


@dataclass(frozen=True)
class Attention:
    """The heads that are shown, of `n_heads`, on the prompt of these tokens; `scale` reads the texts of their rows."""

    tokens: list[str]
    heads: list[HeadRow]
    n_heads: int
    scale: str


def draw_attention(manifest: Manifest) -> Attention | None:
    """The attention that a manifest has; None without."""
    shown = manifest.attention
    if shown is None:
        return None
    heads = [HeadRow(f"{head.layer}.{head.index}", _read_last(head), head.rows) for head in shown.heads]
    return Attention(shown.tokens, heads, shown.n_heads, SCALE)


def _read_last(head: ShownHead) -> list[int]:
    return [round(100 * SCALE.index(letter) / _TOP) for letter in head.rows[-1]]
