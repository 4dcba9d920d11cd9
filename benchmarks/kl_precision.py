"""Hold every KL that is stored or printed against float64: `python benchmarks/kl_precision.py [--model smollm2]`.

Searches each built-in task at its default threshold, and computes the KL of the circuit, of some decisions of its
trace and of its evaluation again, with a model whose weights, residuals and logits are all float64 and with the
definition, sum of P (log P - log Q). Prints one line a task, and one of JSON at the end: the largest deviations, the
smallest value, the circuit. Exits with 1 where one is more than 1e-6 off or negative. Minutes; for SmolLM2 half an hour
with `--every 1`, so a sample of the decisions is the default.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator

import torch

from exporter.circuit import MLP, Ablation, Circuit, Component, Head
from exporter.evidence.evaluate import evaluate_circuit
from exporter.evidence.fitness import require_tokenizer
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel, load_model
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery, rewrite_model, slice_model
from exporter.search.find import search_circuit
from exporter.search.thresholds import find_threshold
from exporter.tasks import SplitSizes, load_task, name_variant
from exporter.tasks.dataset import Dataset

LIMIT = 1e-6  # nats
JOBS: dict[str, dict[str, dict[str, str]]] = {  # model, task, parameters
    "bundled": {"acronym": {}, "greater-than": {}, "ioi": {}},
    "smollm2": {"acronym": {}, "ioi": {"template": "paper"}},
}
SIZES = {"bundled": SplitSizes(), "smollm2": SplitSizes(patching=100, selection=100, test=100)}


class Reference:
    """The model in float64, and the KL of circuits of it on one set, by the definition."""

    def __init__(self, dense: CircuitModel, patching: Dataset, dataset: Dataset) -> None:
        self.dense, self.dataset = dense, dataset
        self.means = compute_replacements(dense, patching, ablation=Ablation())
        self.log_p = [torch.log_softmax(logits, -1) for logits in self._logits(dense)]

    def _logits(self, model: CircuitModel) -> Iterator[torch.Tensor]:
        for part in self.dataset.split(16):
            yield model.answer_logits(part.input_ids, part.mask, part.n_steps)[part.counted].double()  # (answer, vocab)

    def kl(self, circuit: Circuit) -> float:
        """KL(dense || circuit), the mean over answers."""
        small, total, n = slice_model(self.dense, Surgery(circuit, self.means)), 0.0, 0
        for log_p, logits in zip(self.log_p, self._logits(small), strict=True):
            total += float((log_p.exp() * (log_p - torch.log_softmax(logits, -1))).sum())
            n += len(logits)
        return total / n


def take_float64(model: LanguageModel) -> CircuitModel:
    """The dense model with every weight in float64."""
    return FAMILIES[model.family].build_dense(copy.deepcopy(model.hf).double())


def check_task(model: LanguageModel, dense64: CircuitModel, name: str, every: int) -> dict[str, object]:
    """One task's search and evaluation, held against float64."""
    job, sizes = JOBS[model.name][name], SIZES[model.name]
    data = load_task(name, require_tokenizer(model), seed=0, sizes=sizes, **job)
    alpha = find_threshold(name_variant(data), file_sha256=None, model=model.name, model_sha256=model.sha256).alpha
    circuit, record = search_circuit(model, data.patching, data.selection, alpha=alpha)
    assert record.kl is not None
    reference = Reference(dense64, data.patching, data.selection)
    final = record.kl - reference.kl(circuit)
    removed: set[Component] = set()
    everything = [d.component for d in record.trace]
    deviations = []
    for number, decision in enumerate(record.trace):
        if number % every == 0:
            kept = [c for c in everything if c not in removed | {decision.component}]
            without = Circuit(
                heads=tuple(c for c in kept if isinstance(c, Head)),
                mlps=tuple(c.layer for c in kept if isinstance(c, MLP)),
            )
            deviations.append(decision.kl_without - reference.kl(without))
        removed |= {decision.component} if decision.removed else set()
    rewritten = rewrite_model(model, circuit, data.patching)
    test = evaluate_circuit(model.dense.answer_logits, rewritten.answer_logits, data.test)
    evaluated = test.kl - Reference(dense64, data.patching, data.test).kl(circuit)
    smallest = min(record.kl, test.kl, *(d.kl_without for d in record.trace), *(d.kl_before for d in record.trace))
    return {
        "task": name, "alpha": alpha, "kl": record.kl, "kl_off": final, "test_kl": test.kl, "test_kl_off": evaluated,
        "decisions": len(deviations), "largest_decision_off": max(deviations, key=abs), "smallest": smallest,
        "heads": [[h.layer, h.index] for h in circuit.heads], "mlps": list(circuit.mlps),
    }  # fmt: skip


def main() -> int:
    """Check a model's tasks; the exit code says whether all are within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=JOBS, default="bundled")
    parser.add_argument("--every", type=int, default=10, help="check each so many-th decision of a trace")
    parser.add_argument("tasks", nargs="*", help="default: all of the model's")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    dense64, rows = take_float64(model), []
    for name in arguments.tasks or JOBS[arguments.model]:
        row = check_task(model, dense64, name, arguments.every)
        rows.append(row)
        print({key: value for key, value in row.items() if key not in ("heads", "mlps")}, flush=True)
    print(json.dumps(rows))
    worst = max(abs(float(str(row[key]))) for row in rows for key in ("kl_off", "test_kl_off", "largest_decision_off"))
    return int(worst > LIMIT or min(float(str(row["smallest"])) for row in rows) < 0)


if __name__ == "__main__":
    sys.exit(main())
