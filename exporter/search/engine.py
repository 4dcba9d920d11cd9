"""Find the circuit: the paper's greedy search, computing only what a candidate changes.

From the last layer to the first, and in a layer heads before the MLP, a component is removed for
good if the KL grows by less than alpha. When a layer's turn comes, everything below it is still
dense, so its input residual is computed once; removing a component changes the residual after it by
a difference that one pass gives for all heads of the layer; and above it only what survived is left
to run, from the topmost surviving attention on for the answer position alone. Positions that open
every prompt alike are computed once, as a prompt of their own.

Of the vocabulary, a candidate needs one log-sum-exp: with P the dense distribution,
KL(P || Q) = sum P log P + logsumexp(W_U f) - f . (P W_U), where f is the normalised residual.

Most heads go. Where little is computed for each, several of a layer are evaluated at once, each as if
those before it went; from the first one that stays on, what was computed is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from exporter.circuit import MLP, Ablation, Align, Circuit, Component, Decision, Head, Mean
from exporter.circuit_model import CircuitModel, HasDense
from exporter.dataset import Dataset
from exporter.errors import InputError
from exporter.means import Replacements, compute_replacements
from exporter.positions import Positions
from exporter.search.cost import group_by_layer, plan_memory
from exporter.search.ranks import SOLO, Ranks
from exporter.slicing import slice_step
from exporter.sublayers import Attention, Step, run_to_last

OnDecision = Callable[[Decision, int, int], None]
"""Called with each decision, how many have been taken, and how many there are."""

_VOCAB_BLOCK = 4096  # tokens whose logits are exponentiated while they are in the cache
_LEAST_SUM = 1e-30  # of exponentials in float32; below it, digits are lost
_ROWS = 400  # from here on a matrix product gains little from more rows: candidates are batched up to it


@torch.inference_mode()
def find_circuit(
    model: HasDense,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    ablation: Ablation = "mean",
    mean: Mean = "position",
    align: Align = "left",
    mlps: bool = True,
    memory_limit: int | None = None,
    prior: Sequence[Decision] = (),
    ranks: Ranks = SOLO,
    on_decision: OnDecision | None = None,
) -> Circuit:
    """Remove every component whose removal raises KL(dense || circuit) by less than alpha nats (DESIGN section 4).

    Means are taken on `patching`; KL is the mean over all answer positions of `selection`, over the whole
    vocabulary. Means by position count from the first token or from the last, as `align` says. With
    `mlps=False` MLPs are no candidates and stay. `memory_limit` bounds what the search holds beside the
    model, in bytes (default: half of what is free). `prior` are the first decisions of the same search when
    it was cut short: they are carried out without being evaluated again. `ranks` are the processes that
    share the prompts. Raises InputError for an alpha that is not above 0, for prompts that do not fit each
    other, and for too little memory.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}; give a threshold above 0, in nats")
    if ablation == "mean" and mean == "position" and patching.length != selection.length:
        raise InputError(
            f"patching prompts have {patching.length} tokens and selection prompts {selection.length}; "
            "means by position need one length (or use mean='global')"
        )
    dense = model.dense.on_device(ranks.device)
    replacements = compute_replacements(dense, patching, ablation=ablation, mean=mean, align=align)
    search = _Search(dense, selection, replacements, ranks, memory_limit)
    decided = iter(prior)
    total = sum(len(s.heads) if isinstance(s, Attention) else int(mlps) for s in dense.sublayers())
    trace: list[Decision] = []
    for decision in search.run(alpha, mlps, decided):
        trace.append(decision)
        if on_decision is not None:
            on_decision(decision, len(trace), total)
    removed = {decision.component for decision in trace if decision.removed}
    attentions = [s for s in dense.sublayers() if isinstance(s, Attention)]
    heads = {Head(s.layer, index) for s in attentions for index in s.heads}
    layers = {s.layer for s in dense.sublayers() if not isinstance(s, Attention)}
    return Circuit(
        heads=tuple(heads - removed),
        mlps=tuple(layer for layer in layers if MLP(layer) not in removed),
        ablation=ablation,
        mean=mean,
        align=align,
        alpha=alpha,
        order="paper",
        kl=search.kl,
        trace=tuple(trace),
    )


@dataclass(frozen=True, eq=False)
class _Residual:
    """The residual of some prompts, in chunks, and of the opening that they all share.

    opening: (1, opening, d_model), or None where there is none or nothing above reads it. chunks:
    (prompt, pos, d_model) each, at the positions `at`.
    """

    at: list[Positions]
    opening: Tensor | None
    chunks: list[Tensor]

    def through(self, step: Step) -> _Residual:
        """After one more step, at every position."""
        chunks = [step(x, at, opening=self.opening) for x, at in zip(self.chunks, self.at, strict=True)]
        return _Residual(self.at, None if self.opening is None else step(self.opening, self.at_opening), chunks)

    def plus(self, other: _Residual) -> _Residual:
        """With something added at the same positions."""
        opening = None if self.opening is None or other.opening is None else self.opening + other.opening
        return _Residual(other.at, opening, [x + y for x, y in zip(self.chunks, other.chunks, strict=True)])

    def map(self, function: Callable[[Tensor, Positions], Tensor]) -> _Residual:
        """A function of the residual and its positions, for the opening and for each chunk."""
        opening = None if self.opening is None else function(self.opening, self.at_opening)
        return _Residual(self.at, opening, [function(x, at) for x, at in zip(self.chunks, self.at, strict=True)])

    def take_last(self, n: int) -> _Residual:
        """At the last n positions alone."""
        return _Residual([at.take_last(n) for at in self.at], None, [x[:, -n:] for x in self.chunks])

    def to(self, device: torch.device | None) -> _Residual:
        """On a device: itself where it is there."""
        if device is None or self.chunks[0].device == device:
            return self
        opening = None if self.opening is None else self.opening.to(device)
        return _Residual([at.to(device) for at in self.at], opening, [x.to(device) for x in self.chunks])

    @property
    def at_opening(self) -> Positions:
        """The positions of the opening."""
        assert self.at[0].opening is not None
        return self.at[0].opening


_Candidate = tuple[Component, Callable[[], _Residual]]  # and what removing it adds to the residual


class _DenseResiduals:
    """The dense residual before each layer: kept before every few, recomputed between, read from the top down.

    Each is kept where its layer is.
    """

    def __init__(self, layers: list[list[Step]], first: _Residual, keep_every: int) -> None:
        self.layers = layers
        self.keep_every = keep_every
        self.before = {0: first}
        x = first
        for index in range(len(layers)):
            if index % keep_every == 0:
                self.before[index] = x
            x = self._through(index, x)
        self.last = x

    def _through(self, index: int, x: _Residual) -> _Residual:
        for step in self.layers[index]:
            step = step.load()
            x = x.to(step.device).through(step)
        return x

    def take(self, index: int) -> _Residual:
        """The residual before a layer, which is forgotten then."""
        if index not in self.before:
            for earlier in range(index - index % self.keep_every, index):
                self.before[earlier + 1] = self._through(earlier, self.before[earlier])
        return self.before.pop(index)


@dataclass(frozen=True, eq=False)
class _Target:
    """The dense model's distribution P at the answer positions of some prompts, reduced to what KL needs.

    counted: (prompt, step) bool, the answer positions that there are. expected: (answer, d_model), P @ W_U.
    negentropy: (answer,), sum of P log P. Both float64.
    """

    counted: Tensor
    expected: Tensor
    negentropy: Tensor

    @classmethod
    def of(cls, dense: CircuitModel, last: Tensor, counted: Tensor) -> _Target:
        """From the dense model's last residual at the answer positions, (prompt, step, d_model)."""
        counted = counted.to(dense.W_U.device)
        log_p = torch.log_softmax(dense.unembed(last)[counted].float(), dim=-1)  # (answer, vocab)
        p = log_p.exp()
        expected = p.new_zeros(len(p), dense.W_U.shape[1], dtype=torch.float64)
        for weights, tokens in zip(p.split(_VOCAB_BLOCK, dim=1), dense.W_U.split(_VOCAB_BLOCK), strict=True):
            expected += weights @ tokens.float()  # summed in one order, whichever thread is done first
        return cls(counted, expected, (p.double() * log_p).sum(-1))

    def kl(self, dense: CircuitModel, last: Tensor) -> Tensor:
        """Sum over answers of KL(P || Q), Q the distribution that a last residual gives.

        last: (candidate, prompt, step, d_model). Returns (candidate,) float64.
        """
        last = last[:, self.counted]  # (candidate, answer, d_model)
        normed = dense.final_norm(last)
        # a dense prompt's expected logit is near the top: measured from there, sums do not cancel
        base = (normed.float() * self.expected.float()).sum(-1)  # (candidate, answer)
        total = _sum_exp(dense.W_U, normed, base)
        if not ((total > _LEAST_SUM) & total.isfinite()).all():
            base = dense.unembed(last).amax(-1).float()
            total = _sum_exp(dense.W_U, normed, base)
        expected = (normed.double() * self.expected).sum(-1)  # (candidate, answer)
        kl: Tensor = self.negentropy + total.log() + base.double() - expected
        return kl.sum(-1)


def _sum_exp(W_U: Tensor, normed: Tensor, base: Tensor) -> Tensor:
    """Sum over the vocabulary of exp(logit - base): (..., d_model) and (...,) to (...,) float64."""
    rows = normed.flatten(0, -2)
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for tokens in W_U.split(_VOCAB_BLOCK):
        total += torch.mm(rows, tokens.T).float().sub_(base.view(-1, 1)).exp_().sum(1)  # of (row, token)
    return total.view_as(base)


class _Search:
    """The dense model, what survives so far, and the KL now."""

    def __init__(
        self, dense: CircuitModel, selection: Dataset, replacements: Replacements, ranks: Ranks, limit: int | None
    ) -> None:
        self.dense = dense.replace(align=replacements.align)
        self.replacements = replacements
        self.ranks = ranks
        self.kl = 0.0
        self.above: list[Step] = []  # what survives above the layer at hand
        self.layers = group_by_layer(dense.steps)
        self.n_last = selection.n_steps
        self.n_answers = int(selection.counted.sum())
        self.n_share = -(-len(selection) // ranks.size) * self.n_last  # the same on every rank, as groups must be
        share = ranks.take_share(selection)
        plan = plan_memory(dense, len(share), share.length, limit, n_steps=self.n_last)
        first = self._embed(share, plan.chunk, _count_shared_positions(selection))
        self.residuals = _DenseResiduals(self.layers, first, plan.keep_every)
        self.targets = [
            _Target.of(dense, x[:, -self.n_last :], part.counted)
            for x, part in zip(self.residuals.last.chunks, share.split(plan.chunk), strict=True)
        ]

    def _embed(self, share: Dataset, chunk: int, n_opening: int) -> _Residual:
        """The residual before the first layer, the shared opening apart."""
        positions, chunks, opening = [], [], None
        for part in share.split(chunk):
            ids = part.input_ids.to(self.ranks.device)
            mask = None if part.mask is None else part.mask.to(self.ranks.device)
            at = self.dense.place(ids, mask, length=part.length)
            x = self.dense.embed(ids, at)
            positions.append(at.split_opening(n_opening))
            chunks.append(x[:, n_opening:])
            opening = x[:1, :n_opening] if n_opening else None
        return _Residual(positions, opening, chunks)

    def run(self, alpha: float, mlps: bool, decided: Iterator[Decision]) -> Iterator[Decision]:
        """Decide on every component: layers from the last, in a layer its steps in order, heads before MLPs."""
        for index in reversed(range(len(self.layers))):
            layer = [step.load() for step in self.layers[index]]
            x, pruned, rest = self.residuals.take(index), [], layer
            for step in layer:
                rest = rest[1:]
                above = [*rest, *self.above]
                x, candidates = self._run_dense(step, x, above)
                if not mlps:
                    candidates = [candidate for candidate in candidates if not isinstance(candidate[0], MLP)]
                at_once = 1 if any(other.attends for other in above) else max(1, _ROWS // self.n_share)
                removed: set[Component] = set()
                while candidates:
                    # the same groups whatever a journal holds: their size shows in the last digits of the KL
                    group = [component for component, _ in candidates[:at_once]]
                    without = list(accumulate((c() for _, c in candidates[:at_once]), _Residual.plus, initial=x))[1:]
                    kls: list[float] = []
                    for place, component in enumerate(group):
                        decision = next(decided, None)
                        if decision is None:
                            kls = kls or self._evaluate(without, above)
                            change = kls[place] - self.kl
                            decision = Decision(component, self.kl, kls[place], removed=change < alpha)
                        assert decision.component == component, "a journal's key pins the order"
                        candidates = candidates[1:]
                        yield decision
                        if not decision.removed:
                            break
                        removed.add(component)
                        x, self.kl = without[place], decision.kl_without
                pruned.append(slice_step(step, _circuit_without(step, removed), self.replacements))
            self.above = [*pruned, *self.above]

    def _evaluate(self, candidates: list[_Residual], above: list[Step]) -> list[float]:
        """The KL of each candidate, given the residual without it."""
        total = torch.zeros(len(candidates), dtype=torch.float64)
        for place, target in enumerate(self.targets):
            lasts = [
                run_to_last(above, c.chunks[place], c.at[place], last=self.n_last, opening=c.opening)
                for c in candidates
            ]
            total += target.kl(self.dense, torch.stack(lasts).to(self.dense.W_U.device)).cpu()
        return [kl / self.n_answers for kl in self.ranks.sum(total.tolist())]

    def _run_dense(self, step: Step, x: _Residual, above: list[Step]) -> tuple[_Residual, list[_Candidate]]:
        """The residual after a dense step, and what removing each of its components adds to it.

        At the answer positions alone, where nothing above attends.
        """
        x = x.to(step.device)
        last = None if any(other.attends for other in above) else self.n_last
        here = x if last is None else x.take_last(last)
        after = here
        candidates: list[_Candidate] = []
        for sublayer in step.sublayers:
            if isinstance(sublayer, Attention):
                z = [
                    sublayer.z(part, at, last=last, opening=x.opening) for part, at in zip(x.chunks, x.at, strict=True)
                ]
                shared = None if here.opening is None else sublayer.z(here.opening, here.at_opening)
                seen = _Residual(here.at, shared, z)  # (prompt, pos, head, d_head) each
                output = seen.map(lambda part, _at, s=sublayer: s.project(part))  # type: ignore[misc]  # typeshed
                mean = self.replacements.z[sublayer.layer].to(z[0])
                for place, index in enumerate(sublayer.heads):
                    change = partial(_remove_head, sublayer, place, seen, mean)
                    candidates.append((Head(sublayer.layer, index), change))
            else:
                output = here.map(sublayer)
                mean = self.replacements.mlp[sublayer.layer].to(output.chunks[0])
                candidates.append((MLP(sublayer.layer), partial(_remove_mlp, output, mean)))
            after = after.plus(output)
        return after, candidates


def _remove_head(attention: Attention, place: int, z: _Residual, mean: Tensor) -> _Residual:
    """What replacing one head's z by its mean, (pos or 1, head, d_head), adds to the residual."""
    W_O: Tensor = attention.W_O.unflatten(0, (len(attention.heads), -1))[place]  # (d_head, d_model)
    return z.map(lambda part, at: (at.pick(mean[:, place]) - part[:, :, place]) @ W_O)


def _remove_mlp(output: _Residual, mean: Tensor) -> _Residual:
    """What replacing an MLP's output by its mean, (pos or 1, d_model), adds to the residual."""
    return output.map(lambda part, at: at.pick(mean) - part)


def _circuit_without(step: Step, removed: set[Component]) -> Circuit:
    """What of one step stays."""
    heads = [Head(s.layer, index) for s in step.sublayers if isinstance(s, Attention) for index in s.heads]
    return Circuit(
        heads=tuple(head for head in heads if head not in removed),
        mlps=tuple(s.layer for s in step.sublayers if MLP(s.layer) not in removed),
    )


def _count_shared_positions(selection: Dataset) -> int:
    """How many positions open every prompt alike; an answer position is never among them."""
    if selection.mask is not None:
        return 0
    ids = selection.input_ids[:, : -selection.n_steps]
    same = (ids == ids[:1]).all(dim=0)  # (pos,)
    return int(same.long().cumprod(0).sum())
