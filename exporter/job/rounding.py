"""Which parts of an int8 file stay in float32, where rounding all of them loses more than the budget allows.

A weight far above all others takes the whole range of 8 bits, and a single sublayer with one spoils a file. So the
parts of the graph (sublayers, embedding, unembedding) are ordered by how far the file is from the circuit where that
one alone is in int8, and stay in float32 one after another until the budget is kept. (Where one alone stays in float32,
the file may be no nearer: another part spoils it.) All this is judged on the selection set: the test set judges the
file that comes out, as it does every other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from exporter.errors import ExactnessError
from exporter.evidence.evaluate import evaluate_circuit
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx, list_parts
from exporter.graph.options import GraphOptions
from exporter.network.model import CircuitModel
from exporter.runtime.session import open_session
from exporter.search.rules import Budget
from exporter.tasks.dataset import Dataset
from exporter.verify.figures import Served
from exporter.verify.precision import evaluate_file, find_remedy, is_near

MOST_PARTS = 16  # that stay in float32: a file of which more have to is none in int8
FEW_PROMPTS = 64  # that the parts are ordered by


def choose_rounding(
    dense: CircuitModel,
    rewritten: CircuitModel,
    options: GraphOptions,
    selection: Dataset,
    budget: Mapping[str, Any] | None,
) -> GraphOptions:
    """The options with the parts `in_fp32` that a circuit found under a budget needs to keep it in int8.

    In other precisions, or without a budget, the options are returned as they are. The budget's accuracy is to be kept,
    and what the gate of precision asks for; a circuit that lacks accuracy in fp32 already is to lose none. Raises
    ExactnessError: the budget is not kept with as many parts in float32 as may be; InputError: it is no budget.
    """
    if budget is None or options.precision != "int8":
        return options
    figures = evaluate_circuit(dense.answer_logits, rewritten.answer_logits, selection)
    bounds = Budget.from_json(budget).resolve(accuracy=figures.dense.accuracy, parameters=1)
    least = min(bounds.min_accuracy, figures.circuit.accuracy)
    return leave_in_fp32(rewritten, options, selection, least=least)


def leave_in_fp32(model: CircuitModel, options: GraphOptions, selection: Dataset, *, least: float) -> GraphOptions:
    """The same for an accuracy of at least `least`, a share."""
    judge = partial(_judge, model, options)
    served = judge((), selection)
    if _keeps(served, least):
        return options
    few = selection[:FEW_PROMPTS]
    parts = list_parts(model)
    lost = {part: judge(tuple(other for other in parts if other != part), few).kl for part in parts}
    order = sorted(parts, key=lambda part: _give_order(lost[part]), reverse=True)[:MOST_PARTS]
    for n in range(1, len(order) + 1):
        served = judge(tuple(order[:n]), selection)
        if _keeps(served, least):
            return replace(options, in_fp32=tuple(order[:n]))
    raise ExactnessError(
        f"in int8 the circuit loses more than its budget allows, even with {', '.join(order)} in fp32: accuracy "
        f"{served.accuracy.accuracy:.1%} on the selection set where fp32 has {served.circuit_accuracy:.1%}, "
        f"{served.kl:.2g} nats from it; no file was left: {find_remedy(options)} --precision fp32"
    )


def _judge(model: CircuitModel, options: GraphOptions, in_fp32: tuple[str, ...], prompts: Dataset) -> Served:
    """How a file with some parts in float32 answers."""
    with make_scratch() as folder:
        path = folder / "rounded.onnx"
        export_onnx(model, path, replace(options, in_fp32=in_fp32, guard=False))
        return evaluate_file(open_session(path, provider="cpu"), model, prompts)


def _give_order(kl: float | None) -> float:
    """KL to sort by: that of a file whose logits are no numbers is above all others."""
    return math.inf if kl is None or math.isnan(kl) else kl


def _keeps(served: Served, least: float) -> bool:
    return is_near(served) and served.accuracy.accuracy >= least - 1e-9  # shares of n prompts are not exact
