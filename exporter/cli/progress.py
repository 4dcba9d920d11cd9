"""How far a job has come: one line on the terminal, with a bar while the search runs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from exporter.circuit import Decision, SizeStep
    from exporter.studies.points import Point

LEAST_SHARE = 0.032  # of the dense model: `search.walk.LEAST`, where a gradual search ends by default

STAGES = {
    "load": "loading the model and the task",
    "rehearse": "rehearsing what comes after the search",
    "search": "searching the circuit",
    "rewrite": "rewriting",
    "export": "writing ONNX",
    "verify": "checking exactness: hooked, rewritten, ONNX",
    "evaluate": "evaluating on held-out prompts",
    "measure": "measuring latency",
    "completeness": "control: the model without the circuit",
    "minimality": "control: the circuit without each of its units",
    "random": "control: random circuits, healed alike",
    "shuffled": "control: the same job on shuffled answers",
    "stability": "control: the search on resampled prompts",
}


class JobProgress:
    """A line for each stage, with a bar while the search runs; silent when the console is no terminal."""

    def __init__(self, console: Console, *, disable: bool, metric: str = "kl") -> None:
        self.loss = "KL" if metric == "kl" else f"loss of {metric}"
        self.kept: Counter[str] = Counter()  # components that stay, by type
        self.smallest = 1.0  # of the sizes that a gradual search has tried
        self.progress = Progress(
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=disable,
        )
        self.bar = self.progress.add_task("starting", total=None)

    def __enter__(self) -> JobProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_stage(self, stage: str) -> None:
        """A stage has begun."""
        self.progress.reset(self.bar, description=STAGES[stage], total=None)

    def on_size(self, step: SizeStep, share: float) -> None:
        """The gradual search has tried one more size, a share of the dense model's parameters."""
        mark = "kept" if step.kept else "not kept"
        description = f"{share:.1%} of the size: accuracy {step.accuracy:.1%}  KL {step.kl:.3f}  {mark}"
        self.smallest = min(self.smallest, share)
        done = min(99, round(100 * math.log(self.smallest) / math.log(LEAST_SHARE)))  # sizes shrink by a ratio
        self.progress.update(self.bar, description=description, completed=done, total=100)

    def on_decision(self, decision: Decision, done: int, total: int) -> None:
        """The search has decided on one more component."""
        if not decision.removed:
            self.kept[type(decision.component).__name__] += 1
        loss = decision.kl_without if decision.removed else decision.kl_before
        description = (
            f"layer {decision.component.layer}  kept {self.kept['Head']} heads, {self.kept['MLP']} MLPs  "
            f"{self.loss} {loss:.3f}"
        )
        self.progress.update(self.bar, description=description, completed=done, total=total)

    def on_point(self, point: Point, done: int, total: int) -> None:
        """One more point of a sweep is there."""
        of, figures = point.settings, point.figures
        description = f"seed {of['seed']}, {of['ablation']} ablation: {figures['size']:.1%} of the size"
        self.progress.update(self.bar, description=description, completed=done, total=total)
