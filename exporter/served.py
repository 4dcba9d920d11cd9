"""How the file itself answers the held-out prompts, and the gate of reduced precision.

Exactness is `verify`'s question. In int8 or 16 bits a file is not the circuit but near it: how near is
measured here, on the test set, and what is too far off is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.errors import ExactnessError
from exporter.evaluate import Accuracy
from exporter.graph_options import GraphOptions
from exporter.means import CHUNK
from exporter.runtime import read_answer_ids, run_logits

if TYPE_CHECKING:
    import onnxruntime

LEAST_AGREEMENT = 0.99  # of the top answers, with those of the circuit in fp32
MOST_LOSS = 0.01  # of accuracy


@dataclass(frozen=True)
class Served:
    """The file's own accuracy on n held-out prompts, that of the circuit in fp32 among the same answers, on what share
    both answer the same, and the largest difference of their logits."""

    n: int
    accuracy: Accuracy
    circuit_accuracy: float
    agreement: float
    largest_difference: float


@torch.inference_mode()
def evaluate_file(session: onnxruntime.InferenceSession, circuit: CircuitModel, dataset: Dataset) -> Served:
    """Run a file on a set, in chunks, against the circuit that it was made from.

    A file with answer rows chooses among them, and so does the circuit here. Answers of several tokens are
    predicted one call a token, the right ones before it in place.
    """
    found = read_answer_ids(session)
    answer_ids = None if found is None else torch.from_numpy(found)
    right = ours_right = agree = 0
    largest = 0.0
    for part in dataset.split(CHUNK):
        logits = _answer_logits(session, part)  # (prompt, step, vocab or answer)
        ours = circuit.answer_logits(part.input_ids, part.mask, part.n_steps)
        ours = ours if answer_ids is None else ours[..., answer_ids]
        largest = max(largest, float((logits - ours).abs()[part.counted].max()))
        top, our_top = (part.predict(_by_token(x, answer_ids, len(circuit.W_E))) for x in (logits, ours))
        agree += int(((top == our_top) | ~part.counted).all(dim=1).sum())
        right += int(part.is_answer(top).sum())
        ours_right += int(part.is_answer(our_top).sum())
    n = len(dataset)
    return Served(n, Accuracy.of(right, n), ours_right / n, agree / n, largest)


def require_precision(served: Served, options: GraphOptions) -> None:
    """Raise ExactnessError where a file in reduced precision is too far from the circuit; fp32 has its own gate."""
    if options.precision == "fp32":
        return
    lost = served.circuit_accuracy - served.accuracy.accuracy
    if served.agreement >= LEAST_AGREEMENT and abs(lost) <= MOST_LOSS + 1e-9:  # shares of n are not exact
        return
    fits_int8 = options.precision == "int8" and options.scales == "tensor"
    remedy = "try --int8-scales token, or" if fits_int8 else "take"
    raise ExactnessError(
        f"in {options.precision} the circuit answers like in fp32 on {served.agreement:.1%} of {served.n} test prompts "
        f"({LEAST_AGREEMENT:.0%} are needed), with accuracy {served.accuracy.accuracy:.1%} where fp32 has "
        f"{served.circuit_accuracy:.1%}; no file was left: {remedy} --precision fp32"
    )


def _answer_logits(session: onnxruntime.InferenceSession, part: Dataset) -> Tensor:
    """Logits at each answer position: (prompt, step, vocab or answer)."""
    steps = []
    for later in reversed(range(part.n_steps)):
        end = part.length - later
        mask = None if part.mask is None else part.mask[:, :end].numpy()
        steps.append(torch.from_numpy(run_logits(session, part.input_ids[:, :end].numpy(), mask)[:, -1:]))
    return torch.cat(steps, dim=1)


def _by_token(logits: Tensor, answer_ids: Tensor | None, n_tokens: int) -> Tensor:
    """Logits of answers at their tokens' places, minus infinity elsewhere: (prompt, step, vocab)."""
    if answer_ids is None:
        return logits
    full = logits.new_full((*logits.shape[:2], n_tokens), -torch.inf)
    full[..., answer_ids] = logits
    return full
