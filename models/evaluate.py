"""Measure the bundled checkpoint on the tasks' own sets, and write the figures that its card quotes.

    python models/evaluate.py

loads models/bundled in fp32 as `from_pretrained` does, asks the test sets of several seeds and all out-of-distribution
sets, prints a table and writes models/bundled/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

from exporter.metrics.divergence import log_probabilities
from exporter.tasks import TASKS, load_task
from exporter.tasks.dataset import Dataset
from exporter.tasks.prompts import read_words

FOLDER = Path(__file__).parent / "bundled"
SEEDS = (0, 1, 2, 3, 4)


@torch.no_grad()
def compute_probabilities(model: GPT2LMHeadModel, dataset: Dataset) -> Tensor:
    """Next-token distributions at the answer position, (prompt, token) float64."""
    parts = dataset.input_ids.split(100)
    return torch.cat([log_probabilities(model(ids, logits_to_keep=1).logits[:, -1]).exp() for ids in parts])


def measure_set(probabilities: Tensor, dataset: Dataset) -> dict[str, float]:
    """Share of prompts whose top token is right, and mean probability of the right tokens together."""
    right = dataset.is_answer(probabilities.argmax(-1))
    known = dataset.answer_ids >= 0
    mass = probabilities.gather(1, dataset.answer_ids.clamp(min=0)).where(known, 0.0).sum(-1)
    return {"n": len(dataset), "accuracy": right.double().mean().item(), "mass": mass.double().mean().item()}


def read_order(ids: list[int], answer: int, names: set[int]) -> str:
    """ABBA when the answer is the first name, BABA when the repeated name is."""
    first_repeated = next(i for i in ids if i in names and i != answer)
    return "ABBA" if ids.index(answer) < ids.index(first_repeated) else "BABA"


def measure_ioi_parts(tokenizer: Any, probabilities: Tensor, dataset: Dataset) -> dict[str, list[bool]]:
    """Whether each answer is right, by order of names and wording."""
    names = read_token_ids(tokenizer, "names", "names_ood")
    fillers = names | read_token_ids(tokenizer, "places", "objects")
    right = dataset.is_answer(probabilities.argmax(-1)).tolist()
    parts: dict[str, list[bool]] = {}
    for ids, answers, hit in zip(dataset.input_ids.tolist(), dataset.answer_ids.tolist(), right, strict=True):
        order = read_order(ids, answers[0], names)
        wording = "".join(" _" if i in fillers else str(tokenizer.decode([i])) for i in ids)
        for key in (order, f"{order}: {wording}"):
            parts.setdefault(key, []).append(hit)
    return parts


def read_token_ids(tokenizer: Any, *kinds: str) -> set[int]:
    """Tokens of word lists."""
    return {tokenizer.encode(f" {word}", add_special_tokens=False)[0] for kind in kinds for word in read_words(kind)}


def measure_task(model: GPT2LMHeadModel, tokenizer: Any, task: str) -> dict[str, Any]:
    """All figures of one task: the test sets of all seeds together, each out-of-distribution set likewise."""
    sets: dict[str, list[dict[str, float]]] = {}
    parts: dict[str, list[bool]] = {}
    years: Counter[str] = Counter()
    for seed in SEEDS:
        data = load_task(task, tokenizer, seed=seed)
        for name, dataset in {"test": data.test, **data.ood}.items():
            probabilities = compute_probabilities(model, dataset)
            sets.setdefault(name, []).append(measure_set(probabilities, dataset))
            if task == "ioi" and name != "template":
                for key, hits in measure_ioi_parts(tokenizer, probabilities, dataset).items():
                    parts.setdefault(f"{name}: {key}", []).extend(hits)
            if task == "greater-than" and name == "test":
                years.update(str(tokenizer.decode([token])) for token in probabilities.argmax(-1).tolist())
    figures: dict[str, Any] = {name: merge_seeds(measured) for name, measured in sets.items()}
    if parts:
        figures["parts"] = {k: {"n": len(v), "accuracy": sum(v) / len(v)} for k, v in sorted(parts.items())}
    if years:
        figures["answers"] = dict(sorted(years.items()))
        figures["share_of_99"] = years["99"] / sum(years.values())
    return figures


def merge_seeds(measured: list[dict[str, float]]) -> dict[str, float]:
    """Means over sets of one size, with the worst seed's accuracy."""
    accuracies = [one["accuracy"] for one in measured]
    return {
        "n": sum(one["n"] for one in measured),
        "accuracy": sum(accuracies) / len(measured),
        "worst_seed": min(accuracies),
        "mass": sum(one["mass"] for one in measured) / len(measured),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="checkpoint to measure")
    folder = parser.parse_args().folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    figures = {task: measure_task(model, tokenizer, task) for task in TASKS}
    for task, measured in figures.items():
        for name, values in measured.items():
            if isinstance(values, dict) and "accuracy" in values:
                print(
                    f"{task:13} {name:10} " + "  ".join(f"{k} {v:.4f}".replace(".0000", "") for k, v in values.items())
                )
        for name, values in measured.get("parts", {}).items():
            print(f"{task:13} {name}: {values['accuracy']:.4f} of {values['n']}")
        if "answers" in measured:
            print(f"{task:13} 99 is the answer in {measured['share_of_99']:.4f}; answers: {measured['answers']}")
    report = {"seeds": list(SEEDS), "torch": torch.__version__, "tasks": figures}
    (folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
