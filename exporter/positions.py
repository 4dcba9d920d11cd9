"""Where the tokens of a batch stand: what positions, masks and rotary embeddings follow from.

Prompts may have several lengths; shorter ones are padded on the left. A token's position is counted
from its prompt's first token. Tables by position (the means that replace removed components) are read
from the same end for every prompt: `left` counts from the first token, `right` from the last.
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
    """The positions of some tokens.

    ids: (batch or 1, pos) int64, from 0 at a prompt's first token. rows: the same shape, which row of a table
    by position each token reads. mask: (batch, pos) bool, False at padding; None without. rotary: cosine
    and sine, (batch or 1, 1, pos, n_rotary) each. opening: positions that stand before these, of tokens
    that all prompts share.
    """

    ids: Tensor
    rows: Tensor
    mask: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    opening: Positions | None = None

    @property
    def pos(self) -> int:
        """How many positions these are."""
        return self.ids.shape[1]

    def take_last(self, n: int | None) -> Positions:
        """The last n of them; all for None. What stands before is forgotten."""
        if n is None or n == self.pos:
            return self
        rotary = None if self.rotary is None else (self.rotary[0][:, :, -n:], self.rotary[1][:, :, -n:])
        return Positions(self.ids[:, -n:], self.rows[:, -n:], None if self.mask is None else self.mask[:, -n:], rotary)

    def split_opening(self, n: int) -> Positions:
        """The same positions with the first n as the opening of the rest. There must be no padding."""
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
        """These positions on a device: themselves where they are there."""
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
        """Which positions each of the last n_queries may read, the opening first.

        (batch or 1, 1, n_queries, opening + pos) bool; None where that is all of them. A position of padding
        sees itself, or softmax would have nothing to weigh.
        """
        before = 0 if self.opening is None else self.opening.pos
        if n_queries == 1 and self.mask is None:
            return None
        total = before + self.pos
        seen = torch.ones(n_queries, total, dtype=torch.bool, device=self.ids.device).tril(total - n_queries)
        if self.mask is None:
            return seen[None, None]
        itself = torch.eye(total, dtype=torch.bool, device=seen.device)[-n_queries:]
        return (seen & self.mask[:, None, None, :]) | itself  # padding and an opening do not go together


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

    `length` is the number of rows of the tables by position, where there are such tables.
    """
    along = torch.arange(shape[1], device=device)[None]  # (1, pos)
    ids = along if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)  # (batch or 1, pos)
    rows = ids if align == "left" or length is None else along + (length - shape[1])
    return Positions(ids, rows.expand_as(ids), mask, None if rotary is None else rotary(ids))
