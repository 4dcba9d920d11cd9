"""What the circuit keeps: a grid of layers by heads, and how much of each MLP."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.circuit import Decision
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.words import name_metric, write_count, write_share


@dataclass(frozen=True)
class Cell:
    """One head: whether it stays, and what is said of it."""

    kept: bool
    text: str


@dataclass(frozen=True)
class Sliver:
    """One MLP: the share of its hidden units that stays, 0 to 1, the number beside its bar, and what is said of it."""

    share: float
    label: str
    text: str


@dataclass(frozen=True)
class Row:
    """One layer."""

    layer: int
    heads: list[Cell]
    mlp: Sliver


@dataclass(frozen=True)
class Grid:
    """The layers, the last one first, as the residual stream is drawn."""

    rows: list[Row]
    n_heads: int
    kept_heads: int
    of_heads: int
    kept_units: int | None
    of_units: int | None


def draw_grid(manifest: Manifest) -> Grid:
    """The grid of a manifest's circuit."""
    circuit, model = manifest.get_circuit(), manifest.model
    record = manifest.get_record()
    name, unit = name_metric(record.metric)
    priced = {str(d.component): _say_price(d, name, unit) for d in record.trace}
    # older manifests do not say how many hidden units an MLP has: slivers are then drawn against the largest one
    width = model.d_mlp or max((max(units, default=0) + 1 for _, units in circuit.neurons), default=1)
    rows = []
    for layer in reversed(range(model.n_layers)):
        kept = set(circuit.heads_of(layer))
        heads = [
            Cell(index in kept, _say_head(layer, index, index in kept, priced.get(f"a{layer}.h{index}", "")))
            for index in range(model.n_heads)
        ]
        units = circuit.neurons_of(layer)
        n = width if layer in circuit.mlps else len(units or ())
        rows.append(Row(layer, heads, _draw_mlp(layer, n, width, model.d_mlp, priced.get(f"m{layer}", ""))))
    known = model.d_mlp is not None
    return Grid(
        rows=rows,
        n_heads=model.n_heads,
        kept_heads=len(circuit.heads),
        of_heads=model.n_layers * model.n_heads,
        kept_units=len(circuit.mlps) * width + circuit.n_neurons if known else None,
        of_units=model.n_layers * width if known else None,
    )


def _say_head(layer: int, index: int, kept: bool, price: str) -> str:
    return f"Layer {layer}, head {index}: {'kept' if kept else 'removed'}{price}"


def _draw_mlp(layer: int, n: int, width: int, d_mlp: int | None, price: str) -> Sliver:
    if n == 0:
        return Sliver(0.0, "", f"Layer {layer}, MLP: removed{price}")
    if n == width and (d_mlp is None or n == d_mlp):
        return Sliver(1.0, "all", f"Layer {layer}, MLP: kept whole{price}")
    of = "" if d_mlp is None else f" of {d_mlp:,} ({write_share(n / d_mlp)})"
    return Sliver(n / width, f"{n:,}", f"Layer {layer}, MLP: {write_count(n, 'hidden unit')}{of} kept")


def _say_price(decision: Decision, metric: str, unit: str) -> str:
    rise = decision.kl_without - decision.kl_before
    return f"; without it {metric} {'rises' if rise >= 0 else 'falls'} by {abs(rise):.2g} {unit}"
