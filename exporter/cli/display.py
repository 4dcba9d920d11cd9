"""What people see: rich tables and a progress bar for the terminal. The command line prints them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from exporter.circuit import Head

if TYPE_CHECKING:  # torch is not needed to draw a table
    from exporter.circuit import Circuit, Decision
    from exporter.cli.doctor import Check
    from exporter.cli.inspection import Inspection
    from exporter.data_check import Alignment, DataReport
    from exporter.evaluate import Accuracy
    from exporter.manifest import Manifest, ModelInfo

STAGES = {
    "load": "loading the model and the task",
    "search": "searching the circuit",
    "rewrite": "rewriting",
    "export": "writing ONNX",
    "verify": "checking exactness: hooked, rewritten, ONNX",
    "evaluate": "evaluating on held-out prompts",
    "measure": "measuring latency",
}


def make_screen(*, quiet: bool = False) -> Console:
    """Standard output for people; tables are not folded where there is no terminal to tell the width."""
    console = Console(quiet=quiet, highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


class JobProgress:
    """A line for each stage, with a bar while the search runs; silent when the console is no terminal."""

    def __init__(self, console: Console, *, disable: bool) -> None:
        self.kept_heads = 0
        self.kept_mlps = 0
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
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

    def on_decision(self, decision: Decision, done: int, total: int) -> None:
        """The search has decided on one more component."""
        if not decision.removed:
            self.kept_heads += isinstance(decision.component, Head)
            self.kept_mlps += not isinstance(decision.component, Head)
        kl = decision.kl_without if decision.removed else decision.kl_before
        description = (
            f"layer {decision.component.layer}  kept {self.kept_heads} heads, {self.kept_mlps} MLPs  KL {kl:.3f}"
        )
        self.progress.update(self.bar, description=description, completed=done, total=total)


def render_result(manifest: Manifest, *, seconds: float) -> RenderableType:
    """The table at the end of the main job: dense against circuit."""
    circuit, size, model, test = manifest.get_circuit(), manifest.size, manifest.model, manifest.test
    table = Table(title=f"{manifest.task.name} on {model.name}", title_justify="left")
    for column, justify in (("", "left"), ("dense", "right"), ("circuit", "right"), ("", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # a Literal in rich's signature
    table.add_row("held-out accuracy", _accuracy(test.dense), _accuracy(test.circuit), f"n = {test.n}")
    for name, found in manifest.ood.items():
        table.add_row(f"  unseen {name}", _accuracy(found.dense), _accuracy(found.circuit), f"n = {found.n}")
    if manifest.export.precision != "fp32" or manifest.export.logits == "answers":
        served = manifest.export.served
        name = f"  the file: {manifest.export.precision}, {manifest.export.logits}"
        table.add_row(name, "", _accuracy(served.accuracy), f"as in fp32 on {served.agreement:.1%}")
    table.add_row("KL(dense || circuit)", "", f"{test.kl:.3f}", f"top-1 agreement {test.agreement:.1%}")
    heads, mlps = model.n_layers * model.n_heads, model.n_layers
    table.add_row("heads", str(heads), str(len(circuit.heads)), f"{len(circuit.heads) / heads - 1:+.1%}")
    table.add_row("MLPs", str(mlps), str(len(circuit.mlps)), f"{len(circuit.mlps) / mlps - 1:+.1%}")
    table.add_row("parameters", f"{size.dense:,}", f"{size.circuit:,}", f"{-size.reduction:+.1%}")
    table.add_row("constants", "", f"{size.constants:,}", "")
    file = next(iter(manifest.files.values()))
    table.add_row(
        "ONNX file",
        _megabytes(manifest.dense_onnx_bytes),
        _megabytes(file.bytes),
        f"{file.bytes / manifest.dense_onnx_bytes - 1:+.1%}",
    )
    for found_latency in manifest.latency:
        low, high = found_latency.speedup_ci95
        table.add_row(
            f"latency, batch {found_latency.batch}",
            f"{found_latency.dense * 1e3:.2f} ms",
            f"{found_latency.circuit * 1e3:.2f} ms",
            f"{found_latency.speedup:.2f} x  [{low:.2f}, {high:.2f}]",
        )
    exact = manifest.exactness
    lines = (
        f"exact on {exact.prompts} prompts: hooked = rewritten to {exact.hooked_vs_rewritten:.1e}, "
        f"rewritten = ONNX to {exact.rewritten_vs_onnx:.1e} (largest difference of logits)",
        f"latency: medians in ONNX Runtime on {manifest.latency[0].threads} CPU threads; "
        f"the whole job took {seconds:.0f} s",
    )
    return Group(table, *lines)


def render_grid(circuit: Circuit, model: ModelInfo) -> RenderableType:
    """The circuit as layers by heads: what stays is filled."""
    lines = [Text("layer  heads" + " " * max(0, 2 * model.n_heads - 5) + "  MLP", style="dim")]
    for layer in reversed(range(model.n_layers)):
        kept = circuit.heads_of(layer)
        heads = " ".join("■" if index in kept else "·" for index in range(model.n_heads))
        mlp = "■" if layer in circuit.mlps else "·"
        lines.append(Text(f"{layer:5}  {heads}   {mlp}", style="" if kept or layer in circuit.mlps else "dim"))
    return Group(*lines)


def render_inspection(found: Inspection) -> RenderableType:
    """What a file is, line by line, and its circuit as a grid."""
    circuit, model, onnx = found.circuit, found.model, found.onnx
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    means = "" if circuit.ablation == "zero" else f", means by {circuit.mean}"
    search = "given by hand" if circuit.alpha is None else f"{circuit.order} order, alpha {circuit.alpha:g}"
    kl = "" if circuit.kl is None else f", KL {circuit.kl:.3f} on the selection set"
    table.add_row("task", found.task.name)
    table.add_row("model", f"{model.name} ({model.family}, sha256 {model.sha256[:12]})")
    table.add_row("circuit", f"{len(circuit.heads)} heads, {len(circuit.mlps)} MLPs; {search}{kl}")
    table.add_row("ablation", f"{circuit.ablation}{means}")
    for way, values in (("inputs", onnx.inputs), ("outputs", onnx.outputs)):
        table.add_row(way, Text(", ".join(f"{name} {dims}" for name, dims in values.items())))
    table.add_row("ONNX", f"opset {onnx.opset}, IR {onnx.ir_version}, {onnx.nodes} nodes")
    if found.manifest is not None:
        size, test = found.manifest.size, found.manifest.test
        table.add_row("parameters", f"{size.circuit:,} of {size.dense:,} ({-size.reduction:+.1%})")
        table.add_row("held-out", f"accuracy {_accuracy(test.circuit)}, dense {_accuracy(test.dense)}, n = {test.n}")
    if found.note is not None:
        table.add_row("note", found.note)
    return Group(table, Text(), render_grid(circuit, model))


def render_plan(summary: Mapping[str, Any]) -> RenderableType:
    """What a dry run says."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in summary.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        table.add_row(key.replace("_", " "), Text(", ".join(value) if isinstance(value, list) else str(value)))
    return Group(table, "nothing was computed and nothing was written")


def render_tasks(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Tasks with their options, description, example prompt and answer; then the example files."""
    table = Table()
    for column in ("task", "what the model predicts", "example prompt", "answer"):
        table.add_column(column)
    files = []
    for row in rows:
        options = "".join(f" --{name} {value}" for name, value in row["parameters"].items())
        name = row["name"]
        if row["path"] is not None:
            files.append(Text(f"  --task {row['path']}", overflow="fold", no_wrap=True))
            name = "(a file)"
        table.add_row(name + options, row["description"], Text(row["prompt"]), Text(repr(row["answer"])))
    note = Text("your own task is a .jsonl or .csv file (export-circuit check-data FILE); two come along:")
    return Group(table, note, *files)


def render_data_report(report: DataReport) -> RenderableType:
    """What a data file holds, how its prompts are read, and how the dense model does on them."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    dropped = f"{report.duplicates} duplicates, {report.unused} beyond the sets' sizes"
    table.add_row("lines", f"{report.lines} ({dropped})")
    table.add_row("answers", ", ".join(f"{kind}: {n}" for kind, n in report.answers.items()))
    special = "|".join(report.special_tokens) or "none"
    table.add_row("put before each prompt", Text(special))
    for place, bar in enumerate(_draw_lengths(report.lengths)):
        table.add_row("tokens" if place == 0 else "", bar)
    sets = Table()
    for column in ("set", "prompts", f"accuracy of {report.model}"):
        sets.add_column(column)
    for name, n in report.sets.items():
        sets.add_row(name, str(n), Text(_accuracy(report.accuracy[name])))
    verdict = {
        "yes": f"{report.model} can do this task",
        "unclear": f"it is not clear that {report.model} does this task better than guessing",
        "no": f"{report.model} cannot do this task",
    }[report.fitness.verdict]
    examples = [Text("how some prompts are read, positions counted from 0:")]
    examples += [line for example in report.examples for line in _render_alignment(example)]
    return Group(table, sets, *examples, Text(f"{verdict}: on the selection set {report.fitness}"))


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


def _render_alignment(found: Alignment) -> list[Text]:
    """Tokens with bars between them; what is answered stands in brackets behind the position that answers it."""
    head, steps = len(found.tokens) - len(found.answers), found.answers
    shown = Text("|".join(_escape(token) for token in found.tokens[: head + 1]))
    for place, right in enumerate(steps):
        shown.append(" [" + " or ".join(map(_escape, right[:6])) + (" ...]" if len(right) > 6 else "]"), style="bold")
        if place + 1 < len(steps):
            shown.append(" -> ")
    word = "position" if len(steps) == 1 else "positions"
    positions = f"{word} " + ", ".join(str(found.padding + head + place) for place in range(len(steps)))
    among = f", chosen from {', '.join(map(repr, found.choices[:6]))}" if found.choices else ""
    start = f"line {found.line}, {found.padding} of padding, answered at {positions}{among}:"
    return [Text(start, style="dim"), Text("  ").append(shown)]


def _escape(token: str) -> str:
    return token.replace("\n", "\\n").replace("\t", "\\t")


def render_checks(checks: Iterable[Check]) -> RenderableType:
    """What `doctor` found, with the command that mends it."""
    table = Table()
    for column in ("", "what", "found", "mend it with"):
        table.add_column(column, overflow="fold")
    marks = {
        "ok": Text("ok", style="green"),
        "warn": Text("warn", style="yellow"),
        "missing": Text("missing", style="red"),
    }
    for check in checks:
        table.add_row(marks[check.status], check.name, Text(check.detail), Text(check.remedy or ""))
    return table


def _accuracy(found: Accuracy) -> str:
    low, high = found.ci95
    return f"{found.accuracy:.1%} [{low:.1%}, {high:.1%}]"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
