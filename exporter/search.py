"""Find the circuit: the paper's greedy search, computing only what a candidate changes.

From the last layer to the first, and in a layer heads before the MLP, a component is removed for
good if the KL grows by less than alpha. When a layer's turn comes, everything below it is still
dense, so its input residual is computed once; removing a component changes the residual after it by
a difference that one pass gives for all heads of the layer; and above it only what survived is left
to run, from the topmost surviving attention on for the answer position alone.

Of the vocabulary, a candidate needs one log-sum-exp: with P the dense distribution,
KL(P || Q) = sum P log P + logsumexp(W_U f) - f . (P W_U), where f is the normalised residual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exporter.circuit import MLP, Ablation, Circuit, Component, Decision, Head, Mean
from exporter.circuit_model import Attention, CircuitModel, HasDense, Step, run_to_last
from exporter.dataset import Dataset
from exporter.errors import InputError
from exporter.means import CHUNK, Replacements, compute_replacements
from exporter.slicing import slice_step

_Candidate = tuple[Component, Callable[[], list[Tensor]]]

OnDecision = Callable[[Decision, int, int], None]
"""Called with each decision, how many have been taken, and how many there are."""


@torch.inference_mode()
def find_circuit(
    model: HasDense,
    patching: Dataset,
    selection: Dataset,
    *,
    alpha: float,
    ablation: Ablation = "mean",
    mean: Mean = "position",
    mlps: bool = True,
    on_decision: OnDecision | None = None,
) -> Circuit:
    """Remove every component whose removal raises KL(dense || circuit) by less than alpha nats (DESIGN section 4).

    Means are taken on `patching`, KL on `selection`, over the whole vocabulary at the answer position.
    With `mlps=False` MLPs are no candidates and stay. Raises InputError for an alpha that is not above
    0 and for prompts that do not fit each other.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}; give a threshold above 0, in nats")
    if ablation == "mean" and mean == "position" and patching.length != selection.length:
        raise InputError(
            f"patching prompts have {patching.length} tokens and selection prompts {selection.length}; "
            "means by position need one length (or use mean='global')"
        )
    dense = model.dense
    replacements = compute_replacements(dense, patching, ablation=ablation, mean=mean)
    search = _Search(dense, selection, replacements)
    layers = sorted({sublayer.layer for sublayer in dense.sublayers()}, reverse=True)
    total = sum(len(s.heads) if isinstance(s, Attention) else int(mlps) for s in dense.sublayers())
    trace: list[Decision] = []
    for layer in layers:
        for decision in search.prune_layer(layer, alpha, mlps):
            trace.append(decision)
            if on_decision is not None:
                on_decision(decision, len(trace), total)
    heads, kept_mlps = search.kept()
    return Circuit(
        heads=heads,
        mlps=kept_mlps,
        ablation=ablation,
        mean=mean,
        alpha=alpha,
        order="paper",
        kl=search.kl,
        trace=tuple(trace),
    )


@dataclass(frozen=True, eq=False)
class _Target:
    """The dense model's next-token distribution P on some prompts, reduced to what KL needs.

    expected: (prompt, d_model), P @ W_U. negentropy: (prompt,), sum of P log P. Both float64.
    """

    expected: Tensor
    negentropy: Tensor

    @classmethod
    def of(cls, dense: CircuitModel, last: Tensor) -> _Target:
        """From the dense model's last residual at the answer position, (prompt, d_model)."""
        log_p = torch.log_softmax(dense.unembed(last), dim=-1)  # (prompt, vocab)
        p = log_p.exp()
        return cls((p @ dense.W_U).double(), (p.double() * log_p).sum(-1))

    def kl(self, model: CircuitModel, last: Tensor) -> float:
        """Sum over prompts of KL(P || Q), Q the distribution that a last residual gives."""
        normed = model.final_norm(last)
        logits = normed @ model.W_U.T  # (prompt, vocab)
        top = logits.argmax(dim=-1)
        # measured from the top token, so that what all logits share cancels before it is rounded
        above = (logits - logits.gather(1, top[:, None])).exp_().sum(-1, dtype=torch.float64).log()  # (prompt,)
        expected = (normed.double() * (self.expected - model.W_U[top].double())).sum(-1)
        return float((self.negentropy + above - expected).sum())


class _Search:
    """The dense model, what survives so far, and the KL now."""

    def __init__(self, dense: CircuitModel, selection: Dataset, replacements: Replacements) -> None:
        self.dense = dense
        self.replacements = replacements
        self.steps: list[Step] = list(dense.steps)  # pruned above the layer at hand, dense below
        self.inputs: list[list[Tensor]] = []  # by chunk and step, the dense residual (prompt, pos, d_model)
        self.targets: list[_Target] = []
        self.n_prompts = len(selection)
        self.kl = 0.0
        for input_ids in selection.input_ids.split(CHUNK):
            x, inputs = dense.embed(input_ids), []
            for step in dense.steps:
                inputs.append(x)
                x = step(x)
            self.inputs.append(inputs)
            self.targets.append(_Target.of(dense, x[:, -1]))

    def kept(self) -> tuple[tuple[Head, ...], tuple[int, ...]]:
        """The heads and MLPs that survive now."""
        sublayers = [s for step in self.steps for s in step.sublayers]
        heads = tuple(Head(s.layer, i) for s in sublayers if isinstance(s, Attention) for i in s.heads)
        return heads, tuple(s.layer for s in sublayers if not isinstance(s, Attention))

    def prune_layer(self, layer: int, alpha: float, mlps: bool) -> Iterator[Decision]:
        """Decide on every component of one layer; steps in order, so that heads come before the MLP."""
        places = [i for i, step in enumerate(self.dense.steps) if any(s.layer == layer for s in step.sublayers)]
        residuals = [inputs[places[0]] for inputs in self.inputs]
        for place in places:
            removed: set[Component] = set()
            residuals, candidates = self._run_dense(place, residuals)
            for component, difference in candidates:
                if isinstance(component, MLP) and not mlps:
                    continue
                changed = [x + change for x, change in zip(residuals, difference(), strict=True)]
                kl = self._evaluate(changed, place + 1)
                decision = Decision(component, self.kl, kl, removed=kl - self.kl < alpha)
                if decision.removed:
                    removed.add(component)
                    residuals, self.kl = changed, kl
                yield decision
            self.steps[place] = self._slice(place, removed)

    def _run_dense(self, place: int, residuals: list[Tensor]) -> tuple[list[Tensor], list[_Candidate]]:
        """The residuals after a dense step, by chunk, and what removing each of its components changes.

        Only the answer position, where nothing above attends.
        """
        last = not any(step.attends for step in self.steps[place + 1 :])
        after = [x[:, -1:] if last else x for x in residuals]
        candidates: list[_Candidate] = []
        for sublayer in self.dense.steps[place].sublayers:
            if isinstance(sublayer, Attention):
                z = [sublayer.z(x, last=last) for x in residuals]  # (prompt, pos, head, d_head) each
                outputs = [sublayer.project(part) for part in z]
                means = self.replacements.z[sublayer.layer].to(z[0].dtype)
                for place_of, index in enumerate(sublayer.heads):
                    change = partial(_head_changes, sublayer, place_of, z, means[-1:] if last else means)
                    candidates.append((Head(sublayer.layer, index), change))
            else:
                outputs = [sublayer(x, last=last) for x in residuals]
                mean = self.replacements.mlp[sublayer.layer].to(outputs[0].dtype)
                change = partial(_mlp_changes, outputs, mean[-1:] if last else mean)
                candidates.append((MLP(sublayer.layer), change))
            after = [x + out for x, out in zip(after, outputs, strict=True)]
        return after, candidates

    def _evaluate(self, residuals: list[Tensor], start: int) -> float:
        """KL(dense || circuit) from the residuals before step `start`, by chunk."""
        total = 0.0
        for target, x in zip(self.targets, residuals, strict=True):
            total += target.kl(self.dense, run_to_last(self.steps[start:], x))
        return total / self.n_prompts

    def _slice(self, place: int, removed: set[Component]) -> Step:
        step = self.dense.steps[place]
        heads = [Head(s.layer, i) for s in step.sublayers if isinstance(s, Attention) for i in s.heads]
        circuit = Circuit(
            heads=tuple(head for head in heads if head not in removed),
            mlps=tuple(s.layer for s in step.sublayers if MLP(s.layer) not in removed),
        )
        return slice_step(step, circuit, self.replacements)


def _head_changes(attention: Attention, place: int, z: list[Tensor], means: Tensor) -> list[Tensor]:
    """What replacing one head by its mean adds to the residual: (prompt, pos, d_model) for each chunk."""
    W_O = attention.W_O.unflatten(0, (len(attention.heads), -1))[place]  # (d_head, d_model)
    return [(means[:, place] - part[:, :, place]) @ W_O for part in z]


def _mlp_changes(outputs: list[Tensor], mean: Tensor) -> list[Tensor]:
    """What replacing an MLP's outputs, (prompt, pos, d_model) for each chunk, by their mean adds."""
    return [mean - output for output in outputs]
