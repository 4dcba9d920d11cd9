"""Which way of mending wins at which size: `python benchmarks/refit_table.py [--model smollm2]`, minutes.

From one network, cut to `FIRST` of the dense model by Fisher scores and refitted, each size is cut anew, and mended in
five ways: not at all; by a refit, with units chosen by Fisher scores and by removal with repair (`search/removal.py`);
by training steps; by a refit and as many steps. KL and accuracy are those of the selection set. Results go to
benchmarks/results/refit_table.json, and the table of all that is stored into docs/small-circuits.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from main_job import ROOT, describe_machine, write_between

from exporter.circuit import Ablation
from exporter.evidence.fitness import require_tokenizer
from exporter.loading.load import load_model
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import compute_replacements
from exporter.search.gates import score_units
from exporter.search.gradual import _Search, judge_network
from exporter.search.problem import Problem
from exporter.search.refit import refit
from exporter.search.removal import score_repaired
from exporter.search.rules import Budget
from exporter.search.state import State, copy_state, cut_state
from exporter.tasks import SplitSizes, load_task

RESULTS = ROOT / "benchmarks" / "results" / "refit_table.json"
PAGE = ROOT / "docs" / "small-circuits.md"
START, END = "<!-- results of refit -->", "<!-- end of refit -->"
TASKS = {"bundled": ("acronym", "ioi", "greater-than"), "smollm2": ("acronym", "ioi")}
PROMPTS = {"bundled": 400, "smollm2": 200}
SIZES = (0.2, 0.1, 0.05, 0.03)
FIRST = 0.4
STEPS = 80
SCORED = 128  # prompts
WAYS = ("cut", "refit", "repaired order, refit", "steps", "refit, steps")


def main() -> None:
    """Measure a model's tasks, then write the table of all that is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TASKS, default="bundled")
    parser.add_argument("tasks", nargs="*", help="default: all of the model's")
    given = parser.parse_args()
    dense_model = load_model(given.model)
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for task in given.tasks or TASKS[given.model]:
        n = PROMPTS[given.model]
        sizes = SplitSizes(patching=n, selection=100, test=10, ood=5)
        data = load_task(task, require_tokenizer(dense_model), seed=0, sizes=sizes)
        dense = dense_model.dense
        layers = {sublayer.layer for sublayer in dense.sublayers()}
        tables = compute_replacements(dense, data.patching, ablation=Ablation(), neurons=layers)
        problem = Problem(dense, tables, data.selection, Budget(max_params="3%"), patching=data.patching)
        rows = [{"model": given.model, "task": task, **row} for row in measure_task(problem)]
        others = [row for row in stored["rows"] if (row["model"], row["task"]) != (given.model, task)]
        stored = {"rows": others + rows, "machine": describe_machine()}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    table = render_table(stored)
    write_between(PAGE, START, END, table)
    print(table)


def measure_task(problem: Problem) -> list[dict[str, Any]]:
    """One row for each size: parameters, and for each way KL, accuracy and seconds."""
    bench = Bench(problem)
    base = bench.cut(bench.search.start, FIRST, repaired=False)
    bench.refit(base.model)
    rows = []
    for size in SIZES:
        start = time.perf_counter()
        by_fisher = bench.cut(base, size, repaired=False)
        middle = time.perf_counter()
        repaired = bench.cut(base, size, repaired=True)
        scoring = {False: middle - start, True: time.perf_counter() - middle}
        mended: dict[str, tuple[State, list[Callable[[CircuitModel], None]]]] = {
            "cut": (by_fisher, []),
            "refit": (by_fisher, [bench.refit]),
            "repaired order, refit": (repaired, [bench.refit]),
            "steps": (by_fisher, [bench.train]),
            "refit, steps": (by_fisher, [bench.refit, bench.train]),
        }
        row: dict[str, Any] = {"size": size, "parameters": by_fisher.model.count_parameters()}
        for way, (state, changes) in mended.items():
            own, start = copy_state(state), time.perf_counter()
            for change in changes:
                change(own.model)
            seconds = time.perf_counter() - start + scoring[state is repaired]
            found = judge_network(own.model, bench.search.selection)
            row[way] = {"kl": found.kl, "accuracy": found.accuracy, "seconds": seconds}
        print(row, flush=True)
        rows.append(row)
    return rows


class Bench:
    """A search's prompts and choices, and the ways to cut and to mend."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.search = problem, _Search(problem)

    def cut(self, base: State, size: float, *, repaired: bool) -> State:
        """What is left at a size, by Fisher scores, or by what a unit is worth if the others make up for it."""
        assert self.problem.patching is not None
        few = self.search.lessons.take(torch.arange(min(SCORED, len(self.search.lessons))))
        layers = {sublayer.layer for sublayer in base.model.sublayers()}
        ablation = self.problem.replacements.ablation
        means = compute_replacements(base.model, few.prompts, ablation=ablation, neurons=layers)
        generator = torch.Generator().manual_seed(0)
        drawn = [(part.prompts, part.draw_tokens(generator)) for part in few.split(32)]
        if repaired:
            worth = score_repaired(base.model, drawn)
        else:
            worth = score_units(base.model, [part for part, _ in drawn], [tokens for _, tokens in drawn], means)
        return cut_state(base, self.search._choose(base, worth, size), means)

    def refit(self, model: CircuitModel) -> None:
        """In closed form."""
        healer = self.search.healer.healer
        aside = None if healer.aside is None else healer.aside.prompts
        refit(model, self.problem.dense, healer.lessons.prompts, aside)

    def train(self, model: CircuitModel) -> None:
        """By `STEPS` steps at most."""
        self.search.healer.healer.heal(model, steps=STEPS, seed=0)


def render_table(stored: dict[str, Any]) -> str:
    """A row for each model, task and size; the least KL of a row is bold."""
    head = ["model", "task", "parameters", *WAYS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in stored["rows"]:
        least = min(row[way]["kl"] for way in WAYS)
        cells = [row["model"], row["task"], f"{row['size']:.0%}"]
        for way in WAYS:
            kl = f"{row[way]['kl']:.3f}"
            kl = f"**{kl}**" if row[way]["kl"] == least else kl
            cells.append(f"{kl}, {row[way]['accuracy']:.0%}, {row[way]['seconds']:.1f} s")
        lines.append("| " + " | ".join(cells) + " |")
    machine = stored["machine"]
    said = f"KL, accuracy, seconds with scoring; {STEPS} steps at most. {machine['cpu']}, {machine['cores']} cores."
    return "\n".join([*lines, "", said])


if __name__ == "__main__":
    main()
