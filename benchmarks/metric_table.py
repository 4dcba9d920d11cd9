"""What the circuits of each metric are like, on the bundled checkpoint: `python benchmarks/metric_table.py`.

For each built-in task and each metric of `exporter.metrics.SEARCHED`, the greedy search (`--preset paper --metric ...`)
is run with one threshold after the other, from large to small, until a circuit is found whose accuracy is within a
point of the dense model's on the selection and patching sets. Thresholds of different metrics have different units, so
that the first that is good enough is what can be compared. The figures are of the test set, which nothing else reads,
and of the unseen sets. Rows go to benchmarks/results/metric_table.json, those of tasks and metrics that are not named
stay, and the table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from typing import Any

import torch
from main_job import ROOT, describe_machine, write_between
from sweep_alpha import judge_model

from exporter.circuit import Ablation
from exporter.evidence.evaluate import evaluate_circuit
from exporter.evidence.fitness import find_limits
from exporter.loading.load import LanguageModel, load_model
from exporter.metrics import METRICS, SEARCHED
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import Replacements, compute_replacements
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.find import search_circuit
from exporter.tasks import TASKS, SplitSizes, TaskData, load_task
from exporter.tasks.dataset import Dataset

RESULTS = ROOT / "benchmarks" / "results" / "metric_table.json"
PAGE = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- results of metrics -->", "<!-- end of metrics -->"
LADDER = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
SCALES = {"nats": 1.0, "logits": 8.0, "probability": 0.5, "Brier score": 0.5, "share of prompts": 0.1}  # of the ladder
MOST_LOSS = 0.01
SIZES = SplitSizes(patching=250, selection=40, test=500)


def run_metric(model: LanguageModel, data: TaskData, replacements: Replacements, metric: str) -> dict[str, Any]:
    """The first circuit of the ladder that is good enough, or the last, and its figures."""
    judged = [data.selection, data.patching]
    least = judge_model(model.dense, judged) - MOST_LOSS - 1e-9
    start, n_searches = time.perf_counter(), 0
    for rung in LADDER:
        alpha = round(rung * SCALES[METRICS[metric].unit], 6)
        circuit, record = search_circuit(
            model, data.patching, data.selection, alpha=alpha, metric=metric, replacements=replacements
        )
        sliced = slice_model(model.dense, Surgery(circuit, replacements))
        rewritten, n_searches = fold_model(sliced), n_searches + 1
        if judge_model(rewritten, judged) >= least:
            break
    found = evaluate_circuit(model.dense.answer_logits, rewritten.answer_logits, data.test)
    assert found.ece is not None
    assert found.paired is not None
    return {
        "task": data.task,
        "metric": metric,
        "unit": METRICS[metric].unit,
        "alpha": alpha,
        "searches": n_searches,
        "good_enough": judge_model(rewritten, judged) >= least,
        "heads": len(circuit.heads),
        "mlps": len(circuit.mlps),
        "reduction": 1 - sliced.count_parameters() / model.dense.count_parameters(),
        "selection_kl": record.kl,
        "metrics": found.metrics,
        "ece": {"dense": found.ece.dense, "circuit": found.ece.circuit},
        "mcnemar_p": found.paired.mcnemar_p,
        "unseen": {name: judge_model(rewritten, [prompts]) for name, prompts in data.ood.items()},
        "share_99": {
            "dense": find_share(model, model.dense, data.test, "99"),
            "circuit": find_share(model, rewritten, data.test, "99"),
        },
        "seconds": round(time.perf_counter() - start, 1),
    }


@torch.inference_mode()
def find_share(model: LanguageModel, network: CircuitModel, prompts: Dataset, text: str) -> float:
    """On which share of prompts a network predicts this token."""
    wanted = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(wanted) == 1
    parts = [p.predict(network.answer_logits(p.input_ids, p.mask, p.n_steps)) for p in prompts.split(64)]
    return float((torch.cat(parts)[:, -1] == wanted[0]).double().mean())


def render_table(stored: dict[str, Any]) -> str:
    """A row for each task and metric."""
    head = [
        "task", "metric", "alpha", "heads", "MLPs", "parameters", "accuracy", "unseen", "KL", "logit difference",
        "Brier", "ECE", '"99"',
    ]  # fmt: skip
    rows = []
    for row in stored["rows"]:
        of, is_last = row["metrics"], row["task"] == "greater-than"
        cells = [
            row["task"], f"`{row['metric']}`", f"{row['alpha']:g}{'' if row['good_enough'] else ' (too lossy)'}",
            str(row["heads"]), str(row["mlps"]), f"{-row['reduction']:+.1%}", f"{of['accuracy']:.1%}",
            ", ".join(f"{name} {share:.1%}" for name, share in row["unseen"].items()), f"{of['kl']:.3f}",
            f"{of['logit_difference']:.2f}", f"{of['brier']:.3f}", f"{row['ece']['circuit']:.3f}",
            f"{row['share_99']['circuit']:.1%}" if is_last else "",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    dense = {
        row["task"]: f"{row['task']} {row['metrics']['reference_logit_difference']:.2f}, "
        f"{row['metrics']['reference_brier']:.3f}, {row['ece']['dense']:.3f}"
        + (f', "99" on {row["share_99"]["dense"]:.1%}' if row["task"] == "greater-than" else "")
        for row in stored["rows"]
    }
    made = f"{stored['machine']['cpu']}, {stored['machine']['cores']} cores, {stored['date']}"
    stored_pairs = {(row["task"], row["metric"]) for row in stored["rows"]}
    missing = [f"{task} by {name}" for task in TASKS for name in SEARCHED if (task, name) not in stored_pairs]
    not_run = f" Not run yet: {', '.join(missing)}." if missing else ""
    said = f"The dense model's logit difference, Brier score and ECE: {'; '.join(dense.values())}. {made}.{not_run}"
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, "", said])


def main() -> None:
    """Run what was asked for, then write the table of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--metrics", nargs="+", choices=SEARCHED, default=SEARCHED)
    parser.add_argument("--render", action="store_true", help="only write the table of what is stored")
    given = parser.parse_args()
    stored: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": []}
    model = None if given.render else load_model("bundled")
    for task in [] if model is None else given.tasks:
        data = load_task(task, model.tokenizer, sizes=SIZES, limits=find_limits(model.dense))
        replacements = compute_replacements(model.dense, data.patching, ablation=Ablation())
        for metric in given.metrics:
            row = run_metric(model, data, replacements, metric)
            print(json.dumps(row), flush=True)
            rows = [old for old in stored["rows"] if (old["task"], old["metric"]) != (task, metric)] + [row]
            rows.sort(key=lambda r: (list(TASKS).index(r["task"]), SEARCHED.index(r["metric"])))
            stored = {"machine": describe_machine(), "date": datetime.date.today().isoformat(), "rows": rows}
            RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, START, END, render_table(stored))


if __name__ == "__main__":
    main()
