"""Choose a task's default alpha on a model, and write down why: `python benchmarks/sweep_alpha.py` (or `make alphas`).

For every threshold the circuit is searched, and its accuracy is read on the *selection* set; the test set is
never touched. The default is the threshold of the smallest circuit that is faithful there: accuracy within
one point of dense, and a total KL that is bounded. The result goes to exporter/tasks/alphas.json, from
where the tasks take their defaults and every manifest its record of the sweep. Without arguments, all
tasks on the bundled checkpoint; `--model smollm2 --prompts 100 --most-kl 0.5 acronym ioi` for another one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.evaluate import evaluate_circuit
from exporter.loading import LanguageModel, load_model
from exporter.means import compute_replacements
from exporter.rewrite import fold_model
from exporter.search import find_circuit
from exporter.slicing import slice_model
from exporter.tasks import TASKS, SplitSizes, load_task

ALPHAS = (0.005, 0.01, 0.02, 0.04, 0.09, 0.2, 0.4)
ALLOWED_LOSS = 0.01
RULE = (
    f"the smallest circuit whose accuracy on the selection set is within {ALLOWED_LOSS:.0%} of dense "
    "and whose KL there is at most {most_kl} nats; of equal ones the smallest alpha"
)
OUT = Path(__file__).parent.parent / "exporter" / "tasks" / "alphas.json"


def sweep_task(
    model: LanguageModel, task: str, *, alphas: Sequence[float], prompts: int, most_kl: float
) -> dict[str, Any]:
    """Every threshold on one task, and the one that the rule chooses."""
    data = load_task(task, model.tokenizer, sizes=SplitSizes(patching=prompts, selection=prompts))
    dense = model.dense
    rows: list[dict[str, Any]] = []
    for alpha in alphas:
        start = time.perf_counter()
        circuit = find_circuit(model, data.patching, data.selection, alpha=alpha)
        seconds = time.perf_counter() - start
        sliced = slice_model(
            dense, circuit, compute_replacements(dense, data.patching, ablation="mean", mean="position")
        )
        found = evaluate_circuit(dense.answer_logits, fold_model(sliced).answer_logits, data.selection)
        rows.append(
            {
                "alpha": alpha,
                "kl": circuit.kl,
                "accuracy": found.circuit.accuracy,
                "heads": len(circuit.heads),
                "mlps": len(circuit.mlps),
                "reduction": 1 - sliced.count_parameters() / dense.count_parameters(),
            }
        )
        print(f"{task}: {rows[-1]} ({seconds:.1f} s)", flush=True)
    return {
        "alpha": choose_alpha(rows, found.dense.accuracy, most_kl),
        "rule": RULE.format(most_kl=most_kl),
        "prompts": prompts,
        "model": model.name,
        "model_sha256": model.sha256,
        "dense_accuracy": found.dense.accuracy,
        "sweep": rows,
    }


def choose_alpha(rows: list[dict[str, Any]], dense_accuracy: float, most_kl: float) -> float:
    """Apply RULE; the smallest threshold where nothing is faithful."""
    good = [r for r in rows if r["accuracy"] >= dense_accuracy - ALLOWED_LOSS and r["kl"] <= most_kl]
    return min(good or rows[:1], key=lambda row: (-row["reduction"], row["alpha"]))["alpha"]


def main() -> None:
    """Sweep some tasks on one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--most-kl", type=float, default=0.15)
    given = parser.parse_args()
    model = load_model(given.model)
    for task in given.tasks:
        found = sweep_task(model, task, alphas=given.alphas, prompts=given.prompts, most_kl=given.most_kl)
        known = json.loads(OUT.read_text(encoding="utf-8"))
        known.setdefault(model.name, {})[task] = found
        OUT.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
