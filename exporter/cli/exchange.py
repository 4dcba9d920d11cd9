"""The commands that compare circuits with others' and exchange them: `convert` and `roc`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from exporter.cli import options as opts
from exporter.cli import study_options as study
from exporter.cli.screen import Sheet, make_errors, make_screen
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.circuit import CircuitFile
    from exporter.evidence.roc import Roc

Writer = Callable[["CircuitFile", str | None], dict[str, Any]]


def _to_circuit(file: CircuitFile, model: str | None) -> dict[str, Any]:
    return file.circuit.to_json() | file.record.to_json()


def _to_graph(file: CircuitFile, model: str | None) -> dict[str, Any]:
    from exporter.circuit import graph_to_json
    from exporter.loading.load import load_model

    if (source := model or file.model) is None:
        raise UsageError("--model is missing: a graph file has the model's sizes, and only a manifest names its model")
    dense = load_model(source).dense
    dense.check_circuit(file.circuit)
    return graph_to_json(file.circuit, dense.shape, file.record)


def _to_hooks(file: CircuitFile, model: str | None) -> dict[str, Any]:
    from exporter.circuit import list_hooks

    return list_hooks(file.circuit)


FORMATS: dict[str, Writer] = {"circuit": _to_circuit, "eap-ig": _to_graph, "hooks": _to_hooks}


def convert(
    file: study.AnyCircuit,
    to: study.Format,
    out: study.ConvertedOut,
    model: opts.DenseModel = None,
    force: opts.ForceData = False,
) -> None:
    """Write a circuit in another format: ours, the graph file of EAP-IG and MIB, or TransformerLens hook points.

    Example: [bold]export-circuit convert model.json --to eap-ig --out graph.json[/bold]
    """
    from exporter.circuit import read_circuit_file
    from exporter.files import OutputSet

    if model is not None and to != "eap-ig":
        raise UsageError(f"--model is for --to eap-ig, not {to}; leave it out")
    if out.suffix != ".json":
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in .json")
    read = read_circuit_file(file)
    text = json.dumps(FORMATS[to](read, model), indent=None if to == "eap-ig" else 1, allow_nan=False)
    with OutputSet(out, suffixes=(".json",), force=force) as output:
        output.path(".json").write_text(text + "\n", encoding="utf-8")
        output.commit()
    for note in (*read.losses, *(_warn_of_graph(read) if to == "eap-ig" else ())):
        make_errors().say(f"export-circuit: warning: {note}")
    circuit = read.circuit
    kept = f"{len(circuit.heads)} heads, {len(circuit.mlps)} MLPs, {circuit.n_neurons} hidden units of others"
    make_screen().say(f"wrote {kept} to {out}")


def _warn_of_graph(file: CircuitFile) -> list[str]:
    """Where a reader of the graph file computes another network than ours."""
    notes = []
    if any(units for _, units in file.circuit.neurons):
        notes.append(
            "MLPs that are kept in part are whole nodes there; their hidden units stand under a key of our own"
        )
    if file.record.learning is not None:
        notes.append("this circuit's weights were healed; a graph file names components of the original weights")
    return notes


def roc(
    file: study.AnyCircuit,
    against: study.Known,
    plot: study.Plot = None,
    force: opts.ForceData = False,
    as_json: opts.AsJson = False,
) -> None:
    """Hold the order in which a search values components against a known circuit: ROC curve and the area under it.

    Example: [bold]export-circuit roc model.json --against ioi[/bold]
    """
    from exporter.evidence.roc import compare_roc, plot_roc
    from exporter.files import OutputSet

    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot is {str(plot)!r}; give a name that ends in .png or .svg")
    found = compare_roc(file, against)
    if plot is not None:
        with OutputSet(plot, suffixes=(plot.suffix,), force=force) as output:
            plot_roc(found, output.path(plot.suffix))
            output.commit()
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        make_screen().print(_render(found))


def _render(found: Roc) -> Sheet:
    """The figures of a curve; its points are in the JSON."""
    table = Sheet("", "", title=f"{Path(found.circuit).name} against {found.against}", show_header=False)
    table.add_row("area under the ROC curve", f"{found.auc:.3f} (a random order: 0.5)")
    table.add_row("components compared", f"{found.n}, of which {found.positives} are in {found.against}")
    table.add_row("of those in it, the circuit keeps", f"{found.tpr:.1%}")
    table.add_row("of the others, it keeps", f"{found.fpr:.1%}")
    if found.precision is not None:
        table.add_row("of what it keeps are in it", f"{found.precision:.1%}")
    if found.unscored:
        table.add_row("left out, without a score", ", ".join(found.unscored))
    table.add_row("source", found.source)
    return table
