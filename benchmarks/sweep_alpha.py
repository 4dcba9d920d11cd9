"""Choose a task's default alpha on a model, and write down why: `python benchmarks/sweep_alpha.py` (or `make alphas`).

For every threshold the circuit is searched, and its accuracy is read on the *selection* set, with `--judge both` on
the patching set as well (where a data file has too few lines for one set to tell); the test set is never touched. The
default is the threshold of the smallest circuit that is faithful there: accuracy within one point of dense, and a
total KL that is bounded. The result goes to exporter/search/alphas.json, from where the tasks take their defaults and
every manifest its record of the sweep. Rows of an earlier sweep of the same prompts stay, so that thresholds can be
added. Without arguments, all tasks on the bundled checkpoint; for another model, a task's variants, and data files:

    sweep_alpha.py --model smollm2 --patching 100 --selection 100 --most-kl 0.5 acronym "ioi template=paper"
    sweep_alpha.py --model smollm2 --judge both agreement.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from operator import itemgetter
from pathlib import Path
from typing import Any

from exporter.circuit import Ablation, Decision
from exporter.evidence.evaluate import evaluate_dense
from exporter.evidence.fitness import find_limits
from exporter.job.plan import hash_sets
from exporter.loading.load import LanguageModel, load_model
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.replacements import compute_replacements
from exporter.rewrite.surgery import Surgery, slice_model
from exporter.search.find import search_circuit
from exporter.studies.points import share_decisions
from exporter.tasks import EXAMPLES, TASKS, SplitSizes, TaskData, load_task, name_variant
from exporter.tasks.dataset import Dataset

ALPHAS = (0.005, 0.01, 0.02, 0.04, 0.09, 0.2, 0.4)
RULE = (
    "the smallest circuit whose accuracy on the {judge} is within {most_loss:.0%} of dense "
    "and whose KL on the selection set is at most {most_kl} nats; of equal ones the smallest alpha"
)
JUDGES = {"selection": "selection set", "both": "patching and selection sets"}
OUT = Path(__file__).parent.parent / "exporter" / "search" / "alphas.json"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Faithfulness:
    """What a circuit must keep: accuracy to within `most_loss` of dense on the sets that `judge` names, and the KL."""

    most_kl: float = 0.15
    most_loss: float = 0.01
    judge: str = "selection"

    def __str__(self) -> str:
        return RULE.format(judge=JUDGES[self.judge], most_loss=self.most_loss, most_kl=self.most_kl)

    def choose(self, rows: Sequence[dict[str, Any]], dense_accuracy: float) -> float | None:
        """The threshold of the smallest circuit that is faithful; None where none is."""
        least = dense_accuracy - self.most_loss - _ROUNDING
        good = [row for row in rows if row["accuracy"] >= least and row["kl"] <= self.most_kl]
        return min(good, key=lambda row: (-row["reduction"], row["alpha"]))["alpha"] if good else None


def read_task(model: LanguageModel, task: str, sizes: SplitSizes) -> TaskData:
    """The sets of a task that is named as `name_variant` names it; example files go by their names alone."""
    name, *given = task.split(" ")
    if name in EXAMPLES:
        name = str(resources.files("exporter.tasks") / "examples" / name)
    choices = {} if name not in TASKS else TASKS[name].choices
    parameters: dict[str, Any] = {}
    for pair in given:
        key, _, text = pair.partition("=")
        parameters[key] = next((value for value in choices.get(key, ()) if str(value) == text), text)
    return load_task(name, model.tokenizer, sizes=sizes, limits=find_limits(model.dense), **parameters)


def sweep_task(
    model: LanguageModel,
    data: TaskData,
    *,
    alphas: Sequence[float],
    rule: Faithfulness,
    known: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Search with every threshold that `known`, an earlier record, does not have; yields the record as it grows."""
    dense = model.dense
    replacements = compute_replacements(dense, data.patching, ablation=Ablation())
    judged = [data.selection] if rule.judge == "selection" else [data.patching, data.selection]
    record = describe_sweep(model, data, rule)
    of_dense = judge_model(dense, judged)
    rows, traces = find_rows(known, record), list[tuple[Decision, ...]]()
    for alpha in alphas:
        if all(row["alpha"] != alpha for row in rows):
            start = time.perf_counter()
            circuit, found = search_circuit(
                model,
                data.patching,
                data.selection,
                alpha=alpha,
                replacements=replacements,
                prior=max((share_decisions(alpha, trace) for trace in traces), key=len, default=()),
            )
            traces.append(found.trace)
            seconds = time.perf_counter() - start
            sliced = slice_model(dense, Surgery(circuit, replacements))
            row = {
                "alpha": alpha,
                "kl": found.kl,
                "accuracy": judge_model(fold_model(sliced), judged),
                "heads": len(circuit.heads),
                "mlps": len(circuit.mlps),
                "reduction": 1 - sliced.count_parameters() / dense.count_parameters(),
            }
            print(f"{record['task']}: {row}, dense {of_dense:.3f} ({seconds:.0f} s)", flush=True)
            rows = sorted([*rows, row], key=itemgetter("alpha"))
        chosen = rule.choose(rows, of_dense)
        if chosen is not None:
            yield {"alpha": chosen, **record, "dense_accuracy": of_dense, "sweep": rows}
    if rule.choose(rows, of_dense) is None:
        raise SystemExit(f"{record['task']}: no threshold gives {rule}; try smaller ones with --alphas")


def find_rows(known: dict[str, Any] | None, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier record that was of the same model and prompts, judged on the same sets."""
    same = known is not None and all(known.get(key) == value for key, value in record.items() if key != "rule")
    return list(known["sweep"]) if known is not None and same else []


def judge_model(model: CircuitModel, sets: Sequence[Dataset]) -> float:
    """Accuracy on several sets together."""
    right = [evaluate_dense(model.answer_logits, prompts).accuracy * len(prompts) for prompts in sets]
    return sum(right) / sum(map(len, sets))


def describe_sweep(model: LanguageModel, data: TaskData, rule: Faithfulness) -> dict[str, Any]:
    """What a sweep was for, all but its thresholds. `file_sha256` is None but for a task from a file."""
    return {
        "task": name_variant(data),
        "rule": str(rule),
        "judge": rule.judge,
        "prompts": {"patching": len(data.patching), "selection": len(data.selection)},
        "prompts_sha256": hash_sets(data),
        "file_sha256": data.parameters.get("sha256"),
        "model": model.name,
        "model_sha256": model.sha256,
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Put a sweep's record in its place among the others."""
    known = json.loads(path.read_text(encoding="utf-8"))
    known.setdefault(record["model"], {})[record["task"]] = record
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Sweep some tasks on one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="names, variants, example or other data files")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--patching", type=int, default=250, help="prompts; of a data file at most a quarter")
    parser.add_argument("--selection", type=int, default=250, help="prompts; of a data file at most a quarter")
    parser.add_argument("--most-kl", type=float, default=Faithfulness.most_kl)
    parser.add_argument("--most-loss", type=float, default=Faithfulness.most_loss)
    parser.add_argument("--judge", choices=JUDGES, default=Faithfulness.judge)
    given = parser.parse_args()
    rule = Faithfulness(most_kl=given.most_kl, most_loss=given.most_loss, judge=given.judge)
    model = load_model(given.model)
    for task in given.tasks:
        data = read_task(model, task, SplitSizes(patching=given.patching, selection=given.selection))
        known = json.loads(OUT.read_text(encoding="utf-8")).get(model.name, {}).get(name_variant(data))
        for record in sweep_task(model, data, alphas=given.alphas, rule=rule, known=known):
            write_record(OUT, record)
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
