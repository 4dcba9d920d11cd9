"""The exactness gate: the hooked model, the rewritten model and the ONNX file give the same logits.

The three implement the circuit independently, so agreement on held-out prompts, at every position that the
file gives logits for, is evidence that the file computes the circuit that the search chose. A file with past is run
twice: in one call, and with the last tokens one by one, as a decoder calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor

from exporter.checks import require_type
from exporter.circuit import Circuit
from exporter.errors import ExactnessError, InputError
from exporter.files.onnx_file import OnnxFile, count_bytes, is_external, read_external, read_onnx
from exporter.graph.guards import IN_SCOPE, SCOPE_DISTANCE
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope, measure_scope
from exporter.rewrite.replacements import Replacements
from exporter.rewrite.surgery import Surgery, plan_surgery
from exporter.runtime.session import open_session, read_answer_ids, read_form, run_guards, run_in_steps, run_logits
from exporter.tasks.dataset import Dataset
from exporter.verify.figures import Exactness
from exporter.verify.oracle import hooked_logits, record_replacements

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-4
SCOPE_TOLERANCE = 1e-3  # of a squared distance, in its own size where that is above 1
ORDINARY_SCALE = 30.0  # largest |logit| for which the tolerance is absolute; larger ones have larger rounding errors
MOST_PROMPTS = 200  # the first prompts, which are compared at every position
SINGLE_TOKENS = 3  # last tokens that a file with past gets one by one, after one call with all others
_SMALL = 4096  # bytes; weights up to this size stay in the checked graph, since shape inference may need their values
_CHUNK = 32  # prompts at once: logits of all three implementations, at every position, are in memory


def verify_export(
    model: LanguageModel,
    circuit: Circuit,
    rewritten: CircuitModel,
    path: str | Path,
    *,
    patching: Dataset,
    prompts: Dataset,
) -> Exactness:
    """`verify_surgery` for a circuit without edits; `rewritten` must be made with means over `patching`.

    Raises InputError and ExactnessError as `verify_surgery` does.
    """
    for name, given, kind in (
        ("model", model, LanguageModel),
        ("circuit", circuit, Circuit),
        ("patching", patching, Dataset),
    ):
        require_type(name, given, kind)
    return verify_surgery(
        model, plan_surgery(model, circuit, patching), rewritten, path, patching=patching, prompts=prompts
    )


@torch.inference_mode()
def verify_surgery(
    model: LanguageModel,
    surgery: Surgery,
    rewritten: CircuitModel,
    path: str | Path,
    *,
    patching: Dataset,
    prompts: Dataset,
    scope: Scope | None = None,
) -> Exactness:
    """Compare the hooked model, `rewritten` and the file at `path` on the first 200 prompts, padding left out.

    The hooks record their own means over `patching`, which must equal the surgery's. The limit for absolute differences
    of logits is 1e-4, times largest |logit| / 30 if that is above 1. Top tokens must be the same at every position,
    unless their logits are within twice the limit. With a `scope`, the file's guard must say what `measure_scope` does:
    distances to 0.1 %, verdicts but at the limit. Raises ExactnessError: one of these fails, or the ONNX checker does.
    Raises InputError: an argument has the wrong type, or there is no such file.
    """
    for name, given, kind in (("rewritten", rewritten, CircuitModel), ("prompts", prompts, Dataset)):
        require_type(name, given, kind)
    if not Path(path).is_file():
        raise InputError(f"no file {str(path)!r}; give the ONNX file that the rewritten model was exported to")
    check_file(path)
    prompts = prompts[:MOST_PROMPTS]
    session = open_session(path)
    surgery = replace(surgery, replacements=_record_again(model, surgery, patching))
    pairs = {"hooked_vs_rewritten": _Difference(), "rewritten_vs_onnx": _Difference()}
    answer_ids = read_answer_ids(session)
    tokens = slice(None) if answer_ids is None else torch.from_numpy(answer_ids)
    for part in prompts.split(_CHUNK):
        ids, mask = part.input_ids, part.mask
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask  # (prompt, pos)
        hooked, ours = hooked_logits(model, surgery, ids, mask), rewritten(ids, mask)
        pairs["hooked_vs_rewritten"].add(hooked[real], ours[real])  # (token, vocab)
        for logits in _run_file(session, part):
            n_pos = logits.shape[1]  # all positions, or the last ones
            expected, shown = ours[:, -n_pos:, tokens], real[:, -n_pos:]
            pairs["rewritten_vs_onnx"].add(expected[shown], logits[shown])
        if scope is not None:
            _check_scope(session, part, measure_scope(rewritten, scope, ids, mask))
    for name, difference in pairs.items():
        difference.require(name, len(prompts), remedy=find_remedy(surgery.circuit))
    return Exactness(
        **{name: difference.largest for name, difference in pairs.items()},
        limit=max(difference.limit for difference in pairs.values()),
        prompts=len(prompts),
    )


def _record_again(model: LanguageModel, surgery: Surgery, patching: Dataset) -> Replacements:
    """The surgery's tables, recorded by hooks on the Hugging Face model; raises ExactnessError if they differ."""
    tables, neurons = surgery.replacements.tables, [layer for layer, _ in surgery.circuit.neurons]
    ours = record_replacements(model, patching, ablation=surgery.circuit.ablation, neurons=neurons)
    for name, table in tables.items():
        if name not in ours.tables:
            continue  # neurons of an MLP that the circuit keeps or removes as a whole
        limit = TOLERANCE * max(1.0, float(table.abs().max()) / ORDINARY_SCALE)
        difference = float((ours.tables[name] - table).abs().max())
        if not difference <= limit:
            raise ExactnessError(
                f"hooked vs rewritten: the replacements of {name} differ by {difference:.3g}, allowed is {limit:.3g}; "
                f"no file was left. {find_remedy(surgery.circuit)}"
            )
    return ours


def _check_scope(session: onnxruntime.InferenceSession, part: Dataset, expected: Tensor) -> None:
    """Raise ExactnessError where the file's guard says otherwise than `expected`, squared distances of (prompt,)."""
    mask = None if part.mask is None else part.mask.numpy()
    found = {name: torch.from_numpy(array) for name, array in run_guards(session, part.input_ids.numpy(), mask).items()}
    apart = (found[SCOPE_DISTANCE] - expected).abs() / (1 + expected)
    at_limit = (expected - 1).abs() <= SCOPE_TOLERANCE
    if not float(apart.max()) <= SCOPE_TOLERANCE:
        raise ExactnessError(
            f"rewritten vs onnx: the guard's distances differ by {float(apart.max()):.2g} of their size, allowed is "
            f"{SCOPE_TOLERANCE:g}; no file was left. Leave --guard out"
        )
    if not bool((at_limit | (found[IN_SCOPE] == (expected <= 1))).all()):
        raise ExactnessError("rewritten vs onnx: the guard's verdicts differ; no file was left. Leave --guard out")


def _run_file(session: onnxruntime.InferenceSession, part: Dataset) -> Iterator[Tensor]:
    """The file's logits, (prompt, pos, vocab or answer): in one call, and with past also token by token."""
    arrays = part.input_ids.numpy(), None if part.mask is None else part.mask.numpy()
    yield torch.from_numpy(run_logits(session, *arrays))
    if read_form(session) == "past":
        yield torch.from_numpy(run_in_steps(session, *arrays, single=SINGLE_TOKENS))


def find_remedy(circuit: Circuit) -> str:
    """What the user can do where logits differ, as a sentence for the error message.

    In many models the residual of the first token is larger than that of others by orders of magnitude, and later
    layers cancel it. With positions counted from the last token, means mix first tokens of prompts of several lengths
    with other tokens. The kept components then no longer cancel the large values as before, and what is left may be
    smaller than float32's rounding errors; in float64 the three implementations agree.
    """
    if circuit.ablation.align == "right" and circuit.fixed_length:
        return (
            "Means counted from the last token mix up those of first tokens, which can be too large for float32: "
            "search with --align left"
        )
    return "Report this with --debug, or try another circuit"


def check_file(path: str | Path) -> None:
    """Run the ONNX checker with shape inference. Raises ExactnessError: the checker refuses the file."""
    file = read_onnx(path)
    try:
        onnx.checker.check_model(_take_in_weights(file) if file.weights else str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ExactnessError(f"the ONNX checker refuses {Path(path).name}: {first}; export it again") from error


def _take_in_weights(file: OnnxFile) -> onnx.ModelProto:
    """A copy of the graph without external data: small weights inlined, large ones turned into inputs.

    The checker refuses external data behind symbolic links, as in hub caches. `read_onnx` has checked offsets and sizes
    of external data.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    large = []
    for tensor in filter(is_external, model.graph.initializer):
        if count_bytes(tensor) > _SMALL:
            large.append(tensor)
            continue
        tensor.raw_data = read_external(tensor, file.path.parent)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    for tensor in large:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    return model


class _Difference:
    """The largest difference between two implementations, seen chunk by chunk."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.scale = 0.0
        self.flips: list[float] = []  # where top tokens differ: the gap between their logits in the reference

    @property
    def limit(self) -> float:
        return TOLERANCE * max(1.0, self.scale / ORDINARY_SCALE)

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add one chunk of logits: (token, vocab or answer) both."""
        low, high = (reference - other).aminmax()  # both NaN if any difference is NaN
        difference = float(torch.maximum(-low, high))
        self.largest = difference if not difference <= self.largest else self.largest  # NaN stays
        self.scale = max(self.scale, *(abs(float(bound)) for bound in reference.aminmax()))
        ours, theirs = reference.argmax(-1, keepdim=True), other.argmax(-1, keepdim=True)  # (token, 1)
        gap = reference.gather(-1, ours) - reference.gather(-1, theirs)
        self.flips += gap[ours != theirs].tolist()

    def require(self, name: str, n_prompts: int, *, remedy: str) -> None:
        """Raise ExactnessError when logits differ by more than the limit, or top tokens by more than twice it."""
        what = name.replace("_", " ")
        if not self.largest <= self.limit:
            raise ExactnessError(
                f"{what}: logits differ by {self.largest:.3g} on {n_prompts} prompts, allowed is {self.limit:.3g}; "
                f"no file was left. {remedy}"
            )
        if any(gap > 2 * self.limit for gap in self.flips):
            raise ExactnessError(f"{what}: the top token differs at {len(self.flips)} positions; no file was left")
