"""The first screen: what the model is, what it costs and how good it is, in a few words and four figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.circuit import Circuit
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.verdict import Sentence, answer, write_sentences
from exporter.outputs.report.words import write_bytes, write_count, write_interval, write_share, write_short, write_time
from exporter.tasks.descriptions import DESCRIPTIONS


@dataclass(frozen=True)
class Figure:
    """One large number, what it is, and what it is held against."""

    name: str
    value: str
    against: str


@dataclass(frozen=True)
class Example:
    """A prompt by token and what the circuit goes on with."""

    tokens: list[str]
    predicted: str


@dataclass(frozen=True)
class Summary:
    """Everything of the first screen."""

    task: str
    model: str
    family: str
    does: str | None
    keeps: str
    removed: str
    example: Example | None
    figures: list[Figure]
    answer: str
    sentences: list[Sentence]


def summarise(manifest: Manifest) -> Summary:
    """The first screen of a manifest."""
    circuit = manifest.get_circuit()
    ablation = circuit.ablation
    by = "at each position" if ablation.by == "position" else "over all positions"
    return Summary(
        task=Path(manifest.task.name).name,
        model=manifest.model.name,
        family=manifest.model.family,
        does=DESCRIPTIONS.get(manifest.task.name),
        keeps=_name_kept(circuit, manifest),
        removed=f"its mean {by} on prompts of the task" if ablation.kind == "mean" else "zero",
        example=_choose_example(manifest),
        figures=_choose_figures(manifest),
        answer=answer(manifest),
        sentences=write_sentences(manifest),
    )


def _name_kept(circuit: Circuit, manifest: Manifest) -> str:
    model = manifest.model
    parts = [f"{len(circuit.heads):,} of {write_count(model.n_layers * model.n_heads, 'attention head')}"]
    parts.append(f"{len(circuit.mlps):,} of {write_count(model.n_layers, 'MLP')}")
    if circuit.neurons:
        units = write_count(circuit.n_neurons, "hidden unit")
        parts[-1:] = [units] if not circuit.mlps else [parts[-1], units]
        parts[-1] += f" of {write_count(len(circuit.neurons), 'MLP' if not circuit.mlps else 'other MLP')}"
    return " and ".join([", ".join(parts[:-1]), parts[-1]])


def _choose_example(manifest: Manifest) -> Example | None:
    """The prompt that both do best at, of those that are shown."""
    fine = [p for p in manifest.prompts if p.dense.right and p.circuit.right] or manifest.prompts
    return Example(fine[-1].tokens, fine[-1].circuit.predicted) if fine else None


def _choose_figures(manifest: Manifest) -> list[Figure]:
    size, test, files = manifest.size, manifest.test, manifest.files
    share = size.circuit / size.dense if size.dense else 1.0
    found = [
        Figure(
            "of the parameters",
            write_share(share),
            f"{write_short(size.circuit)} of {write_short(size.dense)}, embeddings apart",
        ),
        Figure(
            "accuracy, held out",
            write_share(test.circuit.accuracy),
            f"{write_interval(test.circuit)}; the original {write_share(test.dense.accuracy)}",
        ),
    ]
    if manifest.latency:
        timed = manifest.latency[0]
        found.insert(
            1,
            Figure(
                "as fast as the original",
                f"{timed.speedup:.3g} ×",
                f"{write_time(timed.circuit)} against {write_time(timed.dense)} at batch {timed.batch}",
            ),
        )
    total = sum(file.bytes for name, file in files.items() if name.endswith((".onnx", ".data")))
    against = f"the original {write_bytes(manifest.dense_onnx_bytes)}" if manifest.dense_onnx_bytes else ""
    return [*found, Figure("on disk", write_bytes(total), against)]
