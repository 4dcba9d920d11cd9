"""Positions of a batch's tokens, with the mask and the rotary embedding that depend on them.

Prompts may have several lengths; shorter ones are padded on the left. A token's position is counted
from its prompt's first token. The row of a table by position (the means that replace removed components)
is counted from the first token with `left`, from the last token with `right`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from exporter.circuit import Align


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., arXiv 2104.09864) over the first dimensions of each head.

    inv_freq: (n_rotary / 2,) radians per position, any scaling included. `scale` multiplies cosine and sine.
    """

    def __init__(self, inv_freq: Tensor, *, scale: float) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(inv_freq.detach(), requires_grad=False)
        self.scale = scale

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions (batch, pos): (batch, 1, pos, n_rotary) each, float32."""
        angles = ids[:, None, :, None].float() * self.inv_freq.float()  # (batch, 1, pos, n_rotary / 2)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.scale, angles.sin() * self.scale


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of a batch's tokens.

    ids: (batch or 1, pos) int64, from 0 at a prompt's first token. rows: (batch or 1, pos) int64, the row of a table
    by position that each token reads. mask: (batch, pos) bool, False at padding; None without padding. rotary: cosine
    and sine, (batch or 1, 1, pos, n_rotary) each. opening: positions of the tokens before these, which are the same
    in every prompt.
    """

    ids: Tensor
    rows: Tensor
    mask: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    opening: Positions | None = None

    @property
    def pos(self) -> int:
        """How many positions there are, without the opening."""
        return self.ids.shape[1]

    def take_last(self, n: int | None) -> Positions:
        """The last n positions, without an opening; `self` where n is None or all of them."""
        if n is None or n == self.pos:
            return self
        rotary = None if self.rotary is None else (self.rotary[0][:, :, -n:], self.rotary[1][:, :, -n:])
        return Positions(self.ids[:, -n:], self.rows[:, -n:], None if self.mask is None else self.mask[:, -n:], rotary)

    def crop(self, n_last: int) -> Positions:
        """The same without the first positions that are padding in every prompt; the last n_last stay."""
        if self.mask is None:
            return self
        empty = int((~self.mask.any(dim=0)).long().cumprod(0).sum())
        kept = self.take_last(max(self.pos - empty, n_last))
        return replace(kept, mask=None) if kept.mask is not None and kept.mask.all() else kept

    def split_opening(self, n: int) -> Positions:
        """The same positions with the first n as the opening of the others. There must be no padding."""
        if n == 0:
            return self
        assert self.mask is None
        first = rest = self.rotary
        if self.rotary is not None:
            cos, sin = self.rotary
            first, rest = (cos[:, :, :n], sin[:, :, :n]), (cos[:, :, n:], sin[:, :, n:])
        opening = Positions(self.ids[:, :n], self.rows[:, :n], rotary=first)
        return Positions(self.ids[:, n:], self.rows[:, n:], rotary=rest, opening=opening)

    def to(self, device: torch.device) -> Positions:
        """The positions on a device; `self` if they are there already."""
        if self.ids.device == device:
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            rows=self.rows.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            rotary=None if self.rotary is None else (self.rotary[0].to(device), self.rotary[1].to(device)),
            opening=None if self.opening is None else self.opening.to(device),
        )

    def pick(self, table: Tensor) -> Tensor:
        """The rows of a table by position, (pos or 1, ...), for these tokens: (batch or 1, pos or 1, ...)."""
        return table[None] if table.shape[0] == 1 else table[self.rows]

    def visible(self, n_queries: int) -> Tensor | None:
        """The attention mask of the last n_queries: (batch or 1, 1, n_queries, opening + pos) bool, True where visible.

        None where every query sees every position. A padding position sees itself, since a softmax over no position
        is NaN.
        """
        before = 0 if self.opening is None else self.opening.pos
        if n_queries == 1 and self.mask is None:
            return None
        total = before + self.pos
        seen = torch.ones(n_queries, total, dtype=torch.bool, device=self.ids.device).tril(total - n_queries)
        if self.mask is None:
            return seen[None, None]
        itself = torch.eye(total, dtype=torch.bool, device=seen.device)[-n_queries:]
        return (seen & self.mask[:, None, None, :]) | itself  # with a mask there is no opening, so total == pos


def place_tokens(
    shape: tuple[int, int],
    *,
    mask: Tensor | None,
    rotary: Rotary | None,
    length: int | None,
    align: Align,
    device: torch.device,
) -> Positions:
    """Positions of (batch, pos) tokens, padded on the left where mask, (batch, pos) bool, is False.

    `length`: rows of the tables by position; None if no such table is read.
    """
    along = torch.arange(shape[1], device=device)[None]  # (1, pos)
    ids = along if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)  # (batch or 1, pos)
    rows = ids if align == "left" or length is None else along + (length - shape[1])
    return Positions(ids, rows.expand_as(ids), mask, None if rotary is None else rotary(ids))
