"""How an exported file answers held-out prompts, and the gate for reduced precision.

Files in fp32 must compute the circuit exactly (`exactness`). In int8 or 16 bits a file only approximates it: the error
is measured here, on the test set, and a file with too large an error is refused.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exporter.errors import ExactnessError
from exporter.graph.options import GraphOptions
from exporter.metrics import Answers, measure
from exporter.metrics.statistics import Accuracy, weighted_mean
from exporter.network.model import CircuitModel
from exporter.rewrite.replacements import CHUNK
from exporter.runtime.session import read_answer_ids, read_vocab_size, run_logits
from exporter.tasks.dataset import Dataset
from exporter.verify.figures import Mates, Served

if TYPE_CHECKING:
    import onnxruntime

LEAST_SAME = 0.99  # share of prompts that file and fp32 circuit both answer rightly, or both wrongly
MOST_LOSS = 0.01  # largest change of accuracy, up or down
# mean KL(fp32 circuit || file) in nats. int8 files of the bundled tasks have 0.0001 to 0.0005 (their circuits have 0.11
# to 0.13 from the dense model); int8 files of SmolLM2's acronym and ioi, which lose accuracy, have 0.025 to 0.19
MOST_KL = 0.01
MATES = 32  # prompts of the batches that batches of one are compared with
MOST_MATED = 256  # prompts of this comparison
_MEASURED = ("accuracy", "reference_accuracy", "agreement", "same_verdict", "kl")


@torch.inference_mode()
def evaluate_file(session: onnxruntime.InferenceSession, circuit: CircuitModel, dataset: Dataset) -> Served:
    """Compare a file with the circuit that it was exported from, on a set, in chunks.

    Where the file has logits for some tokens only (logits="answers"), so does the circuit here. An answer of several
    tokens takes one call for each token, after the right tokens before it (teacher forcing). Raises InputError: a
    prompt is one that the file refuses.
    """
    found = read_answer_ids(session)
    answer_ids = None if found is None else torch.from_numpy(found)
    by_token = partial(_by_token, answer_ids=answer_ids, n_tokens=len(circuit.W_E))
    differences: list[float] = []

    def answer(part: Dataset) -> Answers:
        logits = _answer_logits(session, part)  # (prompt, step, vocab or answer)
        ours = circuit.answer_logits(part.input_ids, part.mask, part.n_steps)
        ours = ours if answer_ids is None else ours[..., answer_ids]
        differences.append(float((logits - ours).abs()[part.counted].max()))
        return Answers(part, logits, ours, by_token)

    values = measure(map(answer, dataset.split(CHUNK)), _MEASURED)
    return Served(
        n=len(dataset),
        accuracy=Accuracy.of_values(values["accuracy"]),
        circuit_accuracy=Accuracy.of_values(values["reference_accuracy"]).accuracy,
        agreement=Accuracy.of_values(values["agreement"]).accuracy,
        largest_difference=max(differences),
        same_verdict=Accuracy.of_values(values["same_verdict"]).accuracy,
        kl=weighted_mean(values["kl"], dataset.counted.sum(dim=1)),
    )


@torch.inference_mode()
def compare_batches(session: onnxruntime.InferenceSession, dataset: Dataset) -> Mates:
    """Compare the answers to a set's first prompts, each alone, with those in batches of `MATES`.

    Raises InputError: a prompt is one that the file refuses.
    """
    found = read_answer_ids(session)
    answer_ids = None if found is None else torch.from_numpy(found)
    by_token = partial(_by_token, answer_ids=answer_ids, n_tokens=read_vocab_size(session))
    some = dataset[:MOST_MATED]
    alone = torch.cat([_answer_logits(session, part) for part in some.split(1)])  # (prompt, step, vocab or answer)
    mated = torch.cat([_answer_logits(session, part) for part in some.split(MATES)])
    values = measure([Answers(some, mated, alone, by_token)], ("agreement", "same_verdict"))
    return Mates(
        n=len(some),
        batch=min(MATES, len(some)),
        largest_difference=float((alone - mated).abs()[some.counted].max()),
        changed=1 - Accuracy.of_values(values["agreement"]).accuracy,
        verdict_changed=1 - Accuracy.of_values(values["same_verdict"]).accuracy,
    )


def is_near(served: Served) -> bool:
    """Whether a file in reduced precision answers like the circuit in fp32: same_verdict, accuracy and kl.

    Agreement is no criterion: where several answers are right, rounding may change which of them is likeliest (in
    greater-than, on one prompt in seven), which is no error.
    """
    assert served.same_verdict is not None
    assert served.kl is not None
    lost = abs(served.circuit_accuracy - served.accuracy.accuracy)
    # 1e-9: rounding of shares; the comparisons are false for NaN
    return served.same_verdict >= LEAST_SAME - 1e-9 and lost <= MOST_LOSS + 1e-9 and served.kl <= MOST_KL


def require_precision(served: Served, options: GraphOptions) -> None:
    """Raises ExactnessError: a file in reduced precision is too far from the circuit. Does nothing for fp32.

    So is one whose prompts are right or wrong by their batch-mates.
    """
    if options.precision == "fp32":
        return
    if not is_near(served):
        raise ExactnessError(
            f"in {options.precision} the circuit is right or wrong as in fp32 on {served.same_verdict:.1%} of "
            f"{served.n} test prompts ({LEAST_SAME:.0%} are needed), with accuracy {served.accuracy.accuracy:.1%} "
            f"where fp32 has {served.circuit_accuracy:.1%}, {served.kl:.2g} nats from it ({MOST_KL:g} at most); no "
            f"file was left: "
            f"{find_remedy(options)} --precision fp32"
        )
    mates = served.mates
    if mates is not None and not mates.verdict_changed <= 1 - LEAST_SAME + 1e-9:
        raise ExactnessError(
            f"in {options.precision} {mates.verdict_changed:.1%} of {mates.n} test prompts are right or wrong by what "
            f"other prompts are in their batch of {mates.batch} ({1 - LEAST_SAME:.0%} may be); no file was left: "
            f"{find_remedy(options)} --precision fp32"
        )


def find_remedy(options: GraphOptions) -> str:
    """What may help where a reduced precision loses too much, beside --precision fp32."""
    fits_int8 = options.precision == "int8" and options.scales == "tensor"
    return "try --int8-scales token, or" if fits_int8 else "take"


def _answer_logits(session: onnxruntime.InferenceSession, part: Dataset) -> Tensor:
    """Logits at each answer position: (prompt, step, vocab or answer)."""
    steps = []
    for later in reversed(range(part.n_steps)):
        end = part.length - later
        mask = None if part.mask is None else part.mask[:, :end].numpy()
        steps.append(torch.from_numpy(run_logits(session, part.input_ids[:, :end].numpy(), mask)[:, -1:]))
    return torch.cat(steps, dim=1)


def _by_token(logits: Tensor, answer_ids: Tensor | None, n_tokens: int) -> Tensor:
    """Logits of answers, (prompt, step, answer), by token id: (prompt, step, vocab), minus infinity elsewhere."""
    if answer_ids is None:
        return logits
    full = logits.new_full((*logits.shape[:2], n_tokens), -torch.inf)
    full[..., answer_ids] = logits
    return full
