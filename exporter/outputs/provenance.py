"""Two paragraphs of a model card: how the model was cut out and healed, and where it fails."""

from __future__ import annotations

from exporter.circuit import SearchRecord
from exporter.escaping import escape_markdown
from exporter.evidence.sentences import is_below
from exporter.outputs.manifest import Manifest


def describe_making(manifest: Manifest) -> str:
    """The search, the sizes that it passed, and what was learnt on the way."""
    record = manifest.get_record()
    if record.order == "given":
        return "The circuit was given, not searched for. " + _describe_weights(record)
    parts = [f"It was cut out by the search {escape_markdown(record.search)}."]
    if record.path:
        kept = [step for step in record.path if step.kept]
        sizes = ", ".join(f"{step.parameters:,}" for step in kept[-_MOST_SIZES:])
        more = f" (the last {_MOST_SIZES} of {len(kept)})" if len(kept) > _MOST_SIZES else ""
        parts.append(
            f"{len(record.path)} sizes were tried, of which {len(kept)} kept the budget: {sizes} parameters{more}."
        )
    elif record.trace:
        removed = sum(decision.removed for decision in record.trace)
        parts.append(f"Of {len(record.trace)} candidates {removed} were removed.")
    parts.append(_describe_weights(record))
    return " ".join(parts)


_MOST_SIZES = 8  # that are written out


def _describe_weights(record: SearchRecord) -> str:
    """What became of the weights that stay."""
    learning = record.learning
    if learning is None:
        return "The weights that stay are the original's."
    teachers = {"dense": "the dense model", "labels": "the right answers", "both": "the dense model and the answers"}
    teacher = teachers.get(learning.teacher, learning.teacher)
    word, how = "healed", f"trained for {learning.steps:,} steps in all"
    if learning.heal == "refit":
        word, how = "refitted", "solved anew"
    bare = f", {learning.unlabelled:,} of them without an answer" if learning.unlabelled else ""
    varied = f", and {learning.varied:,} variations of them" if learning.varied else ""
    return (
        f"The weights that stay are {word}, not the original's: {how} on {learning.prompts:,} prompts "
        f"of the task{bare}{varied}, after {escape_markdown(teacher)}."
    )


def describe_failings(manifest: Manifest) -> str:
    """What it is worse at than the dense model, set by set; and what was never measured."""
    lines = [
        f"- {escape_markdown(name)}: {figures.circuit.accuracy:.1%} right, the dense model {figures.dense.accuracy:.1%}"
        for name, figures in {"held-out prompts": manifest.test, **manifest.ood}.items()
        if is_below(figures)
    ]
    known = ", ".join(map(escape_markdown, manifest.ood)) or "none"
    worst = min({"held-out prompts": manifest.test, **manifest.ood}.items(), key=lambda item: item[1].circuit.accuracy)
    lines.append(
        f"- Of what was measured it is weakest on {escape_markdown(worst[0])}: {worst[1].circuit.accuracy:.1%} of "
        f"{worst[1].n:,} prompts right"
    )
    lines.append(f"- Sets of prompts unlike the task's that it was tried on: {known}. On any other text it was not")
    return "\n".join(lines)
