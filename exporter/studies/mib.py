"""CPR and CMD of the Mechanistic Interpretability Benchmark (Mueller et al., arXiv 2504.13151, section 3), node level.

The faithfulness of a circuit C of the network N, for a measure m of its answers and the empty circuit, is

    f(C) = (m(C) - m(empty)) / (m(N) - m(empty)),

0 for the empty circuit and 1 for the network. With C_k the circuit that keeps a share k of the components,

    CPR = integral of f(C_k) dk from 0 to 1: how much of the task a circuit does (more is better),
    CMD = integral of |1 - f(C_k)| dk from 0 to 1: how far it is from the network (0 is best).

Both integrals are taken by the trapezoid rule through the values at the circuits, as in the benchmark's own evaluation.
Theirs takes a fixed list of sizes; ours are the sizes that the sweep came to, and the two ends, which are known: f is 0
at k = 0 and 1 at k = 1. Theirs counts edges (a node counts by its outgoing ones); ours counts the nodes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Areas:
    """CPR, the area under the faithfulness curve, and CMD, the area between it and 1."""

    cpr: float
    cmd: float


def compute_faithfulness(value: float, *, dense: float, empty: float) -> float | None:
    """f(C) from the measure's values for circuit, network and empty circuit; None where the last two are the same."""
    return None if dense == empty else (value - empty) / (dense - empty)


def compute_areas(sizes: Sequence[float], faithfulness: Sequence[float]) -> Areas:
    """CPR and CMD of circuits of some sizes, shares from 0 to 1, in any order; the two ends are added."""
    curve = sorted([(0.0, 0.0), *zip(sizes, faithfulness, strict=True), (1.0, 1.0)])
    under = sum((k2 - k1) * (f1 + f2) / 2 for (k1, f1), (k2, f2) in pairwise(curve))
    beside = sum((k2 - k1) * (abs(1 - f1) + abs(1 - f2)) / 2 for (k1, f1), (k2, f2) in pairwise(curve))
    return Areas(under, beside)
