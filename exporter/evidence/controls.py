"""What the controls of a circuit came to, as data, and what that means in sentences.

`exporter.studies.controls` runs them. Each asks for a way in which the figures of a circuit could be right and mean
nothing: docs/evidence.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from exporter.metrics.statistics import Accuracy

TOP = 10  # units that are shown
LITTLE = 0.01  # nats: what a unit is worth that is worth nothing


@dataclass(frozen=True)
class Figures:
    """A network on the held-out prompts: accuracy, and KL(dense || network) in nats."""

    accuracy: Accuracy
    kl: float


@dataclass(frozen=True)
class Shuffled:
    """The same job on shuffled answers, on the true test set.

    chance: the accuracy of guessing, or of the best answer that is always the same, whichever is higher. refused: why
    there is no circuit. accuracy, parameters: those of the circuit where there is one.
    """

    chance: float
    refused: str | None = None
    accuracy: Accuracy | None = None
    parameters: int | None = None

    @property
    def finds_nothing(self) -> bool:
        """Whether it ended as it should: refused, or at chance."""
        return self.accuracy is None or self.accuracy.ci95[0] <= self.chance


@dataclass(frozen=True)
class RandomCircuits:
    """Circuits of as many heads, MLPs and neurons, drawn at random and healed alike, for at most `steps` steps."""

    steps: int
    draws: tuple[Figures, ...]


@dataclass(frozen=True)
class Completeness:
    """The dense model without the circuit's components, and the dense model."""

    without: Figures
    dense: Accuracy


@dataclass(frozen=True)
class UnitWorth:
    """The circuit without one of its units, a head (`a9.h6`) or what is left of an MLP (`m9`)."""

    unit: str
    kl: float
    accuracy: float


@dataclass(frozen=True)
class Minimality:
    """The circuit on n held-out prompts, and without each of its units, the one that is worth most first."""

    n: int
    whole: Figures
    units: tuple[UnitWorth, ...]


@dataclass(frozen=True)
class Stability:
    """The search repeated on resamples of the patching and the selection set.

    refused: how many of the `resamples` came to no circuit. survival: of each head, and of each MLP of which something
    is kept, in how many of the others it is. heads, neurons: the Jaccard index of the circuit and each of the others; a
    whole MLP counts as all of its neurons.
    """

    resamples: int
    refused: int
    survival: dict[str, int]
    heads: tuple[float, ...]
    neurons: tuple[float, ...]


@dataclass(frozen=True)
class Controls:
    """All of them. shuffled is None where nothing has answers that the search could go by or learn from."""

    shuffled: Shuffled | None
    random: RandomCircuits
    completeness: Completeness
    minimality: Minimality
    stability: Stability


def describe_controls(controls: Controls, circuit: Accuracy) -> list[str]:
    """A sentence for each control; `circuit` is the circuit's own accuracy on the test set."""
    return [
        _describe_shuffled(controls.shuffled),
        _describe_random(controls.random, circuit),
        _describe_completeness(controls.completeness),
        _describe_minimality(controls.minimality),
        _describe_stability(controls.stability),
    ]


def _describe_shuffled(found: Shuffled | None) -> str:
    if found is None:
        return "shuffled answers say nothing here: the search neither goes by answers nor learns from them"
    if found.accuracy is None:
        return f"on shuffled answers the same job finds nothing, as it should: {found.refused}"
    ends = f"on shuffled answers the same job ends at {found.accuracy.accuracy:.1%}, chance being {found.chance:.1%}"
    return f"{ends}: {'as it should' if found.finds_nothing else 'it learns what is not there, so trust it less'}"


def _describe_random(found: RandomCircuits, circuit: Accuracy) -> str:
    shares = [figures.accuracy.accuracy for figures in found.draws]
    n_alike = sum(share >= circuit.ci95[0] for share in shares)
    alike = f", healed for up to {found.steps:,} steps," if found.steps else ""
    does = f"of {len(shares)} random circuits of its size{alike} the best is right on {max(shares):.1%}"
    if n_alike == 0:
        return f"{does}, this one on {circuit.accuracy:.1%}: its components were well chosen"
    return f"{does}, and {n_alike} as often as this one: which components are kept is not all that matters"


def _describe_completeness(found: Completeness) -> str:
    without, dense = found.without.accuracy, found.dense
    does = f"without the circuit the original is right on {without.accuracy:.1%} ({dense.accuracy:.1%} with it)"
    if without.ci95[1] < dense.accuracy:
        return f"{does}: it needs it"
    return f"{does}: it can do the task without it, so that the circuit is not all that does it there"


def _describe_minimality(found: Minimality) -> str:
    idle = sum(unit.kl - found.whole.kl < LITTLE for unit in found.units)
    first = ", ".join(unit.unit for unit in found.units[:3])
    worth = f"; {first} are worth most" if len(found.units) > 3 else ""
    return f"{idle} of its {len(found.units)} heads and MLPs are worth less than {LITTLE:g} nats, each alone{worth}"


def _describe_stability(found: Stability) -> str:
    n_found = found.resamples - found.refused
    refused = f" ({found.refused} more came to no circuit)" if found.refused else ""
    if n_found == 0:
        return f"on resampled prompts none of {found.resamples} searches came to a circuit: it hangs on these prompts"
    always = sum(count == n_found for count in found.survival.values())
    return (
        f"in {n_found} searches on resampled prompts{refused} {always} of its {len(found.survival)} heads and MLPs are "
        f"in every circuit; Jaccard {fmean(found.heads):.2f} of heads, {fmean(found.neurons):.2f} of neurons"
    )
