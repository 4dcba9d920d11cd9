"""The ONNX files that a bundle's targets want beside its own: in other numbers, or with an attention mask.

Each passes the gate of its numbers: in fp32 that of exactness, in reduced precision that of the test set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from exporter.errors import ExactnessError
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx, read_metadata
from exporter.graph.metadata import Origin
from exporter.graph.options import GraphOptions
from exporter.job.gate import Gate
from exporter.job.guard import plan_scope
from exporter.job.plan import Plan
from exporter.job.rounding import choose_rounding
from exporter.outputs.manifest import ExportInfo
from exporter.outputs.shape import name_model
from exporter.outputs.targets import choose_targets
from exporter.outputs.targets.graph_files import list_graphs, place_graph
from exporter.outputs.targets.target import GraphFile


@dataclass(frozen=True)
class Variants:
    """The further files by name, and notes on those that were left out."""

    graphs: dict[str, ExportInfo]
    notes: list[str]


def build_variants(plan: Plan, path: Path, options: GraphOptions, gate: Gate) -> Variants:
    """Write the files that the job's targets want, other than the one at `path`, into its folder and folders there.

    They have a guard where it has one. Raises ExactnessError as `gate` does, but for a file that its target can do
    without.
    """
    job, built = plan.job, Variants({}, [])
    targets = {} if job.bundle is None else choose_targets(job.targets)
    for name, graph in list_graphs(targets.values(), name_model(plan.data.task)).items():
        wanted = graph.adapt(options)
        if wanted == options:  # it is linked when the bundle is written
            continue
        try:
            built.graphs[name] = _build(plan, path, graph, wanted, gate)
        except ExactnessError as error:
            if not graph.optional:
                raise
            built.notes.append(f"{name} is left out: {str(error).split('; no file was left')[0]}")
    return built


def _build(plan: Plan, path: Path, graph: GraphFile, wanted: GraphOptions, gate: Gate) -> ExportInfo:
    """One file, checked before it gets its name."""
    origin = Origin.read(path)
    wanted = choose_rounding(plan.model.dense, gate.rewritten, wanted, plan.data.selection, origin.record.budget)
    metadata = read_metadata(path) | replace(origin, options=wanted).to_metadata()
    gate = replace(gate, scope=plan_scope(plan, gate.rewritten, wanted, rehearsed=not gate.shut))
    with make_scratch() as folder:
        draft = folder / path.name
        export_onnx(gate.rewritten, draft, wanted, metadata=metadata, scope=gate.scope)
        if wanted.precision == "fp32":
            gate.prove(draft, wanted)
        served = gate.serve(draft, wanted)
        place_graph(draft, path.parent / graph.name, weights=graph.weights_name)
    return ExportInfo.of(wanted, served, plan.data.template)
