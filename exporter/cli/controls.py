"""The table of `--evidence full`: what each control came to, and what that means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from exporter.cli.screen import Sheet
from exporter.escaping import escape_controls

if TYPE_CHECKING:
    from exporter.evidence.controls import Controls, Figures
    from exporter.evidence.figures import Evaluation
    from exporter.metrics.statistics import Accuracy


def render_controls(controls: Controls, test: Evaluation) -> RenderableType:
    """A row for each control and for each of the units that are worth most, then the sentences."""
    from exporter.evidence.controls import TOP, describe_controls

    table = Sheet(title="controls, on held-out prompts")
    for column, justify in (("", "left"), ("accuracy", "right"), ("KL", "right"), ("", "left")):
        table.add_column(column, justify=justify)
    table.add_row("the circuit", _accuracy(test.circuit), f"{test.kl:.3f}", "")
    shuffled = controls.shuffled
    if shuffled is not None:
        ends = "refused" if shuffled.accuracy is None else _accuracy(shuffled.accuracy)
        table.add_row("shuffled answers", ends, "", f"chance {shuffled.chance:.1%}")
    for figures in controls.random.draws:
        table.add_row("a random circuit", *_figures(figures), f"{controls.random.steps:,} steps of healing at most")
    table.add_row("all but the circuit", *_figures(controls.completeness.without), "of the dense model")
    minimal = controls.minimality
    for unit in minimal.units[:TOP]:
        worth = f"KL {unit.kl - minimal.whole.kl:+.3f} on {minimal.n} prompts"
        table.add_row(f"  without {unit.unit}", f"{unit.accuracy:.1%}", f"{unit.kl:.3f}", worth)
    return Group(table, *map(escape_controls, describe_controls(controls, test.circuit)))


def _figures(figures: Figures) -> tuple[str, str]:
    return _accuracy(figures.accuracy), f"{figures.kl:.3f}"


def _accuracy(measured: Accuracy) -> str:
    low, high = measured.ci95
    return f"{measured.accuracy:.1%} [{low:.1%}, {high:.1%}]"
