"""What else one could have kept: circuits to hold a found one against. A new one is a file and a line in BASELINES."""

from collections.abc import Callable
from random import Random

from exporter.checks import take_integer
from exporter.circuit import Circuit
from exporter.evidence.baselines.nothing import keep_nothing
from exporter.evidence.baselines.random_circuit import draw_circuit
from exporter.evidence.evaluate import evaluate_circuit
from exporter.evidence.figures import Evaluation
from exporter.network.dense import HasDense, get_dense
from exporter.network.model import CircuitModel
from exporter.rewrite.surgery import Surgery, operate, plan_surgery
from exporter.tasks.dataset import Dataset

Baseline = Callable[[CircuitModel, Circuit, Random], Circuit]
"""Of a dense model and a circuit, another circuit with the same ablation, and no larger."""

BASELINES: dict[str, Baseline] = {
    "nothing": keep_nothing,
    "random": draw_circuit,
}


def compare_baselines(
    model: HasDense, circuit: Circuit, patching: Dataset, dataset: Dataset, *, seed: int = 0
) -> dict[str, Evaluation]:
    """Every baseline of a circuit, evaluated on a set against the dense model, with the circuit's own replacements.

    Raises InputError for a circuit that the model lacks.
    """
    take_integer("seed", seed)
    dense, surgery = get_dense(model), plan_surgery(model, circuit, patching)
    evaluations = {}
    for name, choose in BASELINES.items():
        other = Surgery(choose(dense, circuit, Random(f"{name} {seed}")), surgery.replacements)
        evaluations[name] = evaluate_circuit(dense.answer_logits, operate(dense, other).answer_logits, dataset)
    return evaluations


__all__ = ["BASELINES", "Baseline", "compare_baselines"]
