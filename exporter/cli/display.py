"""What people see: the rich tables that the commands print (the progress bar is `cli.progress`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from exporter.cli.controls import render_controls
from exporter.cli.screen import Sheet, as_text
from exporter.escaping import escape_controls

if TYPE_CHECKING:  # torch is not needed to draw a table
    from exporter.bench.report import BenchReport
    from exporter.circuit import Circuit
    from exporter.cli.doctor import Check
    from exporter.cli.inspection import Inspection
    from exporter.evidence.fitness import Alignment, DataReport
    from exporter.graph.metadata import ModelInfo
    from exporter.metrics.statistics import Accuracy
    from exporter.outputs.manifest import Manifest


def render_result(manifest: Manifest, *, seconds: float) -> RenderableType:
    """The table at the end of the main job: dense against circuit."""
    circuit, size, model, test = manifest.get_circuit(), manifest.size, manifest.model, manifest.test
    table = Sheet(title=f"{manifest.task.name} on {model.name}")
    for column, justify in (("", "left"), ("dense", "right"), ("circuit", "right"), ("", "right")):
        table.add_column(column, justify=justify)
    table.add_row("held-out accuracy", _accuracy(test.dense), _accuracy(test.circuit), f"n = {test.n}")
    for name, unseen in manifest.ood.items():
        table.add_row(f"  unseen {name}", _accuracy(unseen.dense), _accuracy(unseen.circuit), f"n = {unseen.n}")
    if manifest.export.precision != "fp32" or manifest.export.answer_ids:
        served = manifest.export.served
        kept = "".join(f", {part} in fp32" for part in manifest.export.in_fp32)
        name = f"  the file: {manifest.export.precision}{kept}, {manifest.export.logits}"
        table.add_row(name, "", _accuracy(served.accuracy), f"as in fp32 on {served.agreement:.1%}")
    table.add_row("KL(dense || circuit)", "", f"{test.kl:.3f}", f"top-1 agreement {test.agreement:.1%}")
    if manifest.guard is not None:
        told = manifest.guard.test
        table.add_row("false alarms of the guard", "", _share(told.refused, told.ci95), f"n = {told.n}")
    heads, mlps = model.n_layers * model.n_heads, model.n_layers
    table.add_row("heads", str(heads), str(len(circuit.heads)), f"{len(circuit.heads) / heads - 1:+.1%}")
    table.add_row("MLPs", str(mlps), str(len(circuit.mlps)), f"{len(circuit.mlps) / mlps - 1:+.1%}")
    if circuit.neurons:
        table.add_row("neurons of other MLPs", "", str(circuit.n_neurons), f"of {len(circuit.neurons)} MLPs")
    table.add_row("parameters", f"{size.dense:,}", f"{size.circuit:,}", f"{-size.reduction:+.1%}")
    table.add_row("constants", "", f"{size.constants:,}", "")
    file = next(iter(manifest.files.values()))
    table.add_row(
        "ONNX file",
        _megabytes(manifest.dense_onnx_bytes),
        _megabytes(file.bytes),
        f"{file.bytes / manifest.dense_onnx_bytes - 1:+.1%}",
    )
    for latency in manifest.latency:
        low, high = latency.speedup_ci95
        table.add_row(
            f"latency, batch {latency.batch}",
            f"{latency.dense * 1e3:.2f} ms",
            f"{latency.circuit * 1e3:.2f} ms",
            f"{latency.speedup:.2f} x  [{low:.2f}, {high:.2f}]",
        )
    controls = [] if manifest.controls is None else [render_controls(manifest.controls, test)]
    return Group(table, *_describe_result(manifest, seconds), *controls)


def _describe_result(manifest: Manifest, seconds: float) -> list[str]:
    """What stands below the table, a sentence a line."""
    from exporter.evidence.sentences import describe_sets
    from exporter.graph.int8 import EVERYWHERE
    from exporter.verify.figures import describe_mates

    exact, record = manifest.exactness, manifest.get_record()
    export = manifest.export
    lines = (
        f"search: {record.search}" if record.metric != "kl" else None,
        f"weights: {record.weights}",
        *map(escape_controls, describe_sets(manifest.test, manifest.ood)),
        f"exact on {exact.prompts} prompts: hooked = rewritten to {exact.hooked_vs_rewritten:.1e}, "
        f"rewritten = ONNX to {exact.rewritten_vs_onnx:.1e} (largest difference of logits)",
        None if export.served.mates is None else f"int8: {describe_mates(export.served.mates)}",
        None if export.processors in (None, EVERYWHERE) else f"int8: sums are exact on {export.processors} only",
        f"latency: medians in ONNX Runtime on {manifest.latency[0].threads} CPU threads; "
        f"the whole job took {seconds:.0f} s",
    )
    return list(filter(None, lines))


def render_grid(circuit: Circuit, model: ModelInfo) -> RenderableType:
    """The circuit as layers by heads: what stays is filled."""
    lines = [Text("layer  heads" + " " * max(0, 2 * model.n_heads - 5) + "  MLP", style="dim")]
    for layer in reversed(range(model.n_layers)):
        kept = circuit.heads_of(layer)
        heads = " ".join("■" if index in kept else "·" for index in range(model.n_heads))
        neurons = circuit.neurons_of(layer)
        mlp = "■" if layer in circuit.mlps else "·" if neurons is None else f"{len(neurons)} neurons"
        lines.append(Text(f"{layer:5}  {heads}   {mlp}", style="dim" if not kept and mlp == "·" else ""))
    return Group(*lines)


def render_inspection(inspection: Inspection) -> RenderableType:
    """What a file is, line by line, and its circuit as a grid."""
    circuit, model, onnx = inspection.circuit, inspection.model, inspection.onnx
    table = Sheet(show_header=False, box=None, padding=(0, 2, 0, 0))
    record, ablation = inspection.record, circuit.ablation
    means = "" if ablation.kind == "zero" else f", means by {ablation.by}"
    kl = "" if record.kl is None else f", KL {record.kl:.3f} on the selection set"
    neurons = f", {circuit.n_neurons} neurons of other MLPs" if circuit.neurons else ""
    table.add_row("task", inspection.task.name)
    table.add_row("model", f"{model.name} ({model.family}, sha256 {model.sha256[:12]})")
    table.add_row("circuit", f"{len(circuit.heads)} heads, {len(circuit.mlps)} MLPs{neurons}; {record.search}{kl}")
    table.add_row("ablation", f"{ablation.kind}{means}")
    table.add_row("weights", record.weights)
    for way, values in (("inputs", onnx.inputs), ("outputs", onnx.outputs)):
        table.add_row(way, ", ".join(f"{name} {dims}" for name, dims in values.items()))
    table.add_row("ONNX", f"opset {onnx.opset}, IR {onnx.ir_version}, {onnx.nodes} nodes")
    if inspection.manifest is not None:
        size, test = inspection.manifest.size, inspection.manifest.test
        table.add_row("parameters", f"{size.circuit:,} of {size.dense:,} ({-size.reduction:+.1%})")
        table.add_row("held-out", f"accuracy {_accuracy(test.circuit)}, dense {_accuracy(test.dense)}, n = {test.n}")
        if test.ece is not None:
            table.add_row("calibration", f"ECE {test.ece.circuit:.3f}, dense {test.ece.dense:.3f}")
    if inspection.note is not None:
        table.add_row("note", inspection.note)
    controls = None if inspection.manifest is None else inspection.manifest.controls
    shown = (
        []
        if controls is None or inspection.manifest is None
        else [Text(), render_controls(controls, inspection.manifest.test)]
    )
    return Group(table, Text(), render_grid(circuit, model), *shown)


def render_plan(summary: Mapping[str, Any]) -> RenderableType:
    """What a dry run says."""
    table = Sheet(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in summary.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        table.add_row(key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    return Group(table, "all stages were rehearsed on a few prompts; nothing was searched, and nothing was written")


def render_tasks(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Tasks with their options, description, example prompt and answer; then the example files."""
    table = Sheet("task", "what the model predicts", "example prompt", "answer")
    files = []
    for row in rows:
        options = "".join(f" --{name} {value}" for name, value in row["parameters"].items())
        name = row["name"]
        if row["path"] is not None:
            files.append(Text(f"  --task {escape_controls(row['path'])}", overflow="fold", no_wrap=True))
            name = "(a file)"
        table.add_row(name + options, row["description"], row["prompt"], repr(row["answer"]))
    note = Text("your own task is a .jsonl or .csv file (export-circuit check-data FILE); two come along:")
    return Group(table, note, *files)


def render_data_report(report: DataReport) -> RenderableType:
    """What a data file holds, how its prompts are read, and how the dense model does on them."""
    table = Sheet(show_header=False, box=None, padding=(0, 2, 0, 0))
    dropped = f"{report.duplicates} duplicates, {report.unused} beyond the sets' sizes"
    table.add_row("lines", f"{report.lines} ({dropped})")
    if report.repeated:
        table.add_row("duplicates", _list_pairs(report.repeated))
    table.add_row("near duplicates", report.near_summary)
    table.add_row("answers", ", ".join(f"{kind}: {n}" for kind, n in report.answers.items()))
    special = "|".join(report.special_tokens) or "none"
    table.add_row("put before each prompt", special)
    for row, bar in enumerate(_draw_lengths(report.lengths)):
        table.add_row("tokens" if row == 0 else "", bar)
    sets = Sheet("set", "prompts", f"accuracy of {report.model}")
    for name, n in report.sets.items():
        without = f" ({report.unlabelled} without an answer)" if name == "patching" and report.unlabelled else ""
        measured = report.accuracy.get(name)
        sets.add_row(name, f"{n}{without}", "" if measured is None else _accuracy(measured))
    verdict = {
        "yes": f"{report.model} can do this task",
        "unclear": f"it is not clear that {report.model} does this task better than guessing",
        "no": f"{report.model} cannot do this task",
    }[report.fitness.verdict]
    examples = [Text("how some prompts are read, positions counted from 0:")]
    examples += [line for example in report.examples for line in _render_alignment(example)]
    return Group(table, sets, *examples, as_text(f"{verdict}: on the selection set {report.fitness}"))


def _list_pairs(pairs: Sequence[tuple[int, int]], most: int = 6) -> str:
    """Lines and the earlier ones that they repeat, and how many more there are."""
    more = f" and {len(pairs) - most} more" if len(pairs) > most else ""
    return ", ".join(f"line {line} is line {earlier}" for line, earlier in pairs[:most]) + more


def _draw_lengths(lengths: Mapping[int, int], most_bars: int = 12) -> list[str]:
    """A histogram, sideways: lengths by one, or by as many as it takes to fit."""
    first, width = min(lengths), 1 + (max(lengths) - min(lengths)) // most_bars
    counts: dict[int, int] = {}
    for length, n in lengths.items():
        start = first + (length - first) // width * width
        counts[start] = counts.get(start, 0) + n
    longest = max(counts.values())
    names = {start: str(start) if width == 1 else f"{start}-{min(start + width - 1, max(lengths))}" for start in counts}
    return [f"{names[start]:>9}  {'■' * max(1, round(24 * n / longest))} {n}" for start, n in sorted(counts.items())]


def _render_alignment(example: Alignment) -> list[Text]:
    """A prompt's tokens with bars between them. The right answers of a position stand in brackets behind it."""
    head, steps = len(example.tokens) - len(example.answers), example.answers
    shown = Text("|".join(escape_controls(token) for token in example.tokens[: head + 1]))
    for step, right in enumerate(steps):
        shown.append(
            " [" + " or ".join(map(escape_controls, right[:6])) + (" ...]" if len(right) > 6 else "]"), style="bold"
        )
        if step + 1 < len(steps):
            shown.append(" -> ")
    word = "position" if len(steps) == 1 else "positions"
    positions = f"{word} " + ", ".join(str(example.padding + head + step) for step in range(len(steps)))
    among = f", chosen from {', '.join(map(repr, example.choices[:6]))}" if example.choices else ""
    start = f"line {example.line}, {example.padding} of padding, answered at {positions}{among}:"
    return [as_text(start, style="dim"), Text("  ").append(shown)]


def render_checks(checks: Iterable[Check]) -> RenderableType:
    """What `doctor` found, with the command that mends it."""
    table = Sheet()
    for column in ("", "what", "found", "mend it with"):
        table.add_column(column, overflow="fold")
    marks = {
        "ok": Text("ok", style="green"),
        "warn": Text("warn", style="yellow"),
        "missing": Text("missing", style="red"),
    }
    for check in checks:
        table.add_row(marks[check.status], check.name, check.detail, check.remedy or "")
    return table


def render_bench(report: BenchReport) -> RenderableType:
    """What `bench` measured: a row for each batch, then what was counted."""
    title = " against ".join([Path(report.model).name, *dict.fromkeys(b.against for b in report.batches if b.against)])
    table = Sheet(title=title, caption_justify="left")
    prompts = "the file's examples, answers right" if report.prompts == "examples" else "random token ids"
    timed = "medians, 95 % bootstrap interval" if report.batches[0].against else "counted, not timed"
    table.caption = f"{report.provider}, {report.threads} threads; {prompts}; {timed}"
    for column in ("", "reference", "circuit", "speed-up", "at least"):
        table.add_column(column, justify="left" if column == "" else "right")
    for result in report.batches:
        if result.speedup is not None and result.ci95 is not None:
            low, high = result.ci95
            table.add_row(
                f"batch {result.batch}, {result.pos} tokens, {result.against}",
                f"{1e3 * (result.reference_seconds or 0):.2f} ms",
                f"{1e3 * (result.circuit_seconds or 0):.2f} ms",
                f"{result.speedup:.2f} x  [{low:.2f}, {high:.2f}]",
                "" if result.bar is None else f"{result.bar:.2f} x",
            )
    # one row for each batch: where it was measured against two models, the first, which is the reference
    for result in {result.batch: result for result in reversed(report.batches)}.values():
        reference = None if result.reference is None else result.reference.flops
        table.add_row(f"GFLOPs, batch {result.batch}", *_compare(reference, result.circuit.flops, 1e9))
    first = report.batches[0]
    for label, name, unit in (
        ("nodes", "nodes", 1),
        ("parameters, M", "parameters", 1e6),
        ("weights, MB", "weight_bytes", 1e6),
        ("file, MB", "file_bytes", 1e6),
    ):
        table.add_row(label, *_compare(getattr(first.reference, name, None), getattr(first.circuit, name), unit))
    return table


def _accuracy(measured: Accuracy) -> str:
    return _share(measured.accuracy, measured.ci95)


def _share(share: float, ci95: tuple[float, float]) -> str:
    return f"{share:.1%} [{ci95[0]:.1%}, {ci95[1]:.1%}]"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _compare(reference: int | None, circuit: int | None, unit: float) -> tuple[str, str, str]:
    """Two counts and how many times less the second is."""
    shown = ["" if n is None else f"{n / unit:,.0f}" if unit == 1 else f"{n / unit:,.3f}" for n in (reference, circuit)]
    return shown[0], shown[1], f"{reference / circuit:.2f} x" if reference and circuit else ""
