"""What removed components are replaced by: tables of means over the patching set, or of zeros, one for each site.

Means are taken on the dense model, once, and never updated. A unit's contribution is linear in its activation, so the
mean activation gives the mean contribution: mean(z @ W_O) = mean(z) @ W_O. Padding is left out of the means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exporter.circuit import Ablation
from exporter.network.model import CircuitModel
from exporter.network.positions import Positions
from exporter.tasks.dataset import Dataset

CHUNK = 64  # prompts per forward pass, here and in every later stage but the search


@dataclass(frozen=True, eq=False)
class Replacements:
    """A table for each site, float64, by the site's name (`exporter.network.sites`).

    heads.L: (pos, head, d_head). mlp.L: (pos, d_model). neurons.L, where requested: (pos, d_mlp). pos is 1 where the
    replacement is the same at every position; else positions are counted from the end that `ablation.align` names.
    """

    tables: Mapping[str, Tensor]
    ablation: Ablation = field(default_factory=Ablation)

    @property
    def length(self) -> int | None:
        """The number of rows of tables by position; None where all positions share one row."""
        return next(iter(self.tables.values())).shape[0] if self.ablation.fixed_length else None


@torch.inference_mode()
def compute_replacements(
    dense: CircuitModel,
    patching: Dataset,
    *,
    ablation: Ablation,
    neurons: Collection[int] = (),
    on_residual: Callable[[Tensor, Tensor], None] | None = None,
) -> Replacements:
    """Tables over the patching set for the heads and the MLP of every layer, and for the neurons of layers `neurons`.

    In a table by position, a position that no prompt has takes the mean over all positions. Zero ablation reads only
    shapes from the pass over `patching`, and gives one row whatever `ablation.by` is. `on_residual` is called with the
    rows of some prompts, and their residual after the last step, (prompt, pos, d_model). Raises InputError: prompts are
    longer than the model's positions.
    """
    dense = dense.replace(align=ablation.align)
    means: dict[str, _Mean] = {}
    for rows in patching.order_by_length().split(CHUNK):
        part = patching.take(rows)
        at = dense.place(part.input_ids, part.mask, length=patching.length).crop(patching.n_steps)
        x = dense.embed(part.input_ids, at)
        for step in dense.steps:
            step = step.load()
            x, here = x.to(step.device), at.to(x.device if step.device is None else step.device)
            out = step.add_constant(x, here)
            for sublayer in step.sublayers:
                first, *finer = sublayer.sites
                read = [first, *(site for site in finer if site.layer in neurons)][-1]
                activations = read.read(x, here)
                output = read.project(activations)
                seen = {read: activations} if read is first else {first: output, read: activations}  # an MLP's output
                for site, values in seen.items():
                    means.setdefault(site.name, _Mean(patching.length, values)).add(values, here)
                out = out + output
            x = out
        if on_residual is not None:
            on_residual(rows, x)
    return Replacements({name: mean.reduce(ablation) for name, mean in means.items()}, ablation)


class _Mean:
    """A running sum of (batch, pos, ...) values by position, on the CPU in float64."""

    def __init__(self, length: int, like: Tensor) -> None:
        self.total = torch.zeros(length, *like.shape[2:], dtype=torch.float64)  # (pos, ...)
        self.n = torch.zeros(length, dtype=torch.float64)  # prompts that have this position

    def add(self, values: Tensor, at: Positions) -> None:
        """Add values, (batch, pos, ...), at the positions `at`, without those of padding."""
        if at.mask is None:
            rows = at.rows[0].cpu()  # the same for every prompt
            self.total[rows] += values.sum(dim=0, dtype=torch.float64).cpu()
            self.n[rows] += len(values)
        else:
            rows = at.rows[at.mask].cpu()  # (token,)
            self.total.index_add_(0, rows, values[at.mask].double().cpu())
            self.n.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))

    def reduce(self, ablation: Ablation) -> Tensor:
        """The table, (pos or 1, ...)."""
        if ablation.kind == "zero":
            return torch.zeros_like(self.total[:1])
        n = self.n.view(-1, *(1 for _ in self.total.shape[1:]))  # (pos, 1, ...)
        overall = self.total.sum(dim=0, keepdim=True) / n.sum()
        return overall if ablation.by == "global" else torch.where(n > 0, self.total / n.clamp(min=1), overall)
