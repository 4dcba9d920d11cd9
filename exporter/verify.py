"""The exactness gate: the hooked model, the rewritten model and the ONNX file give the same logits.

Each of the three computes the circuit in its own way, so agreement on held-out prompts, at every
position that the file gives logits for, is evidence that the file on disk is the circuit that was found. A
file with past is run twice: in one call, and with the last tokens one by one, as a decoder calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from exporter.circuit import Circuit
from exporter.circuit_model import CircuitModel
from exporter.dataset import Dataset
from exporter.errors import ExactnessError
from exporter.hooks import hooked_logits, record_replacements
from exporter.loading import LanguageModel
from exporter.runtime import open_session, read_answer_ids, read_form, run_in_steps, run_logits

TOLERANCE = 1e-4
ORDINARY_SCALE = 30.0  # up to here the tolerance is absolute; larger logits round more coarsely
MOST_PROMPTS = 200  # of those given; each counts at every position
SINGLE_TOKENS = 3  # that come one by one, after all others in one call
_CHUNK = 32  # prompts whose logits at every position are held three times


@dataclass(frozen=True)
class Exactness:
    """Largest absolute differences of logits, the limit they were held to, and on how many prompts."""

    hooked_vs_rewritten: float
    rewritten_vs_onnx: float
    limit: float
    prompts: int


@torch.inference_mode()
def verify_export(
    model: LanguageModel,
    circuit: Circuit,
    rewritten: CircuitModel,
    path: str | Path,
    *,
    patching: Dataset,
    prompts: Dataset,
) -> Exactness:
    """Compare the three on the first 200 of `prompts`, at every position but padding.

    `patching` gives the hooked model its means. Differences must not exceed 1e-4, or 1e-4 / 30 of the
    largest logit where that is more; the top token must be the same at every position, but for ties within
    the limit. The file must pass the ONNX checker. Raises ExactnessError that names what disagrees and by how much.
    """
    check_file(path)
    prompts = prompts[:MOST_PROMPTS]
    session = open_session(path)
    replacements = record_replacements(
        model, patching, ablation=circuit.ablation, mean=circuit.mean, align=circuit.align
    )
    pairs = {"hooked_vs_rewritten": _Difference(), "rewritten_vs_onnx": _Difference()}
    answer_ids = read_answer_ids(session)
    tokens = slice(None) if answer_ids is None else torch.from_numpy(answer_ids)
    for part in prompts.split(_CHUNK):
        ids, mask = part.input_ids, part.mask
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask  # (prompt, pos)
        hooked, ours = hooked_logits(model, circuit, replacements, ids, mask), rewritten(ids, mask)
        pairs["hooked_vs_rewritten"].add(hooked[real], ours[real])  # (token, vocab)
        arrays = ids.numpy(), None if mask is None else mask.numpy()
        exported = [run_logits(session, *arrays)]
        if read_form(session) == "past":
            exported.append(run_in_steps(session, *arrays, single=SINGLE_TOKENS))
        for logits in exported:
            n_pos = logits.shape[1]  # all positions, or the last ones
            expected, shown = ours[:, -n_pos:, tokens], real[:, -n_pos:]
            pairs["rewritten_vs_onnx"].add(expected[shown], torch.from_numpy(logits)[shown])
    for name, difference in pairs.items():
        difference.require(name, len(prompts), remedy=find_remedy(circuit))
    return Exactness(
        **{name: difference.largest for name, difference in pairs.items()},
        limit=max(difference.limit for difference in pairs.values()),
        prompts=len(prompts),
    )


def find_remedy(circuit: Circuit) -> str:
    """What to do where logits differ.

    In many models the residual of the first token is larger than others' by orders of magnitude, and is cancelled
    above. A mean counted from the last token mixes it with others': what is left of it then is no longer what the
    components that stay go together with, and may be less than what float32 rounds off. In float64 they agree.
    """
    if circuit.align == "right" and circuit.fixed_length:
        return (
            "Means counted from the last token mix up those of first tokens, which can be too large for float32: "
            "search with --align left"
        )
    return "Report this with --debug, or try another circuit"


def check_file(path: str | Path) -> None:
    """Run the ONNX checker with shape inference; raises ExactnessError."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ExactnessError(f"the ONNX checker refuses {Path(path).name}: {first}; export it again") from error


class _Difference:
    """The largest difference between two implementations, seen chunk by chunk."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.scale = 0.0
        self.flips: list[float] = []  # by how much the top tokens that differ are apart

    @property
    def limit(self) -> float:
        return TOLERANCE * max(1.0, self.scale / ORDINARY_SCALE)

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Take in logits of (token, vocab)."""
        low, high = (reference - other).aminmax()  # NaN if any is
        difference = float(torch.maximum(-low, high))
        self.largest = difference if not difference <= self.largest else self.largest  # NaN stays
        self.scale = max(self.scale, *(abs(float(bound)) for bound in reference.aminmax()))
        ours, theirs = reference.argmax(-1, keepdim=True), other.argmax(-1, keepdim=True)  # (token, 1)
        gap = reference.gather(-1, ours) - reference.gather(-1, theirs)
        self.flips += gap[ours != theirs].tolist()

    def require(self, name: str, n_prompts: int, *, remedy: str) -> None:
        """Raise ExactnessError when the two are not the same model."""
        what = name.replace("_", " ")
        if not self.largest <= self.limit:
            raise ExactnessError(
                f"{what}: logits differ by {self.largest:.3g} on {n_prompts} prompts, allowed is {self.limit:.3g}; "
                f"no file was left. {remedy}"
            )
        if any(gap > 2 * self.limit for gap in self.flips):
            raise ExactnessError(f"{what}: the top token differs at {len(self.flips)} positions; no file was left")
