"""What is measured against what: the contestants, and the comparisons they meet in.

The full product of cases, contestants, batches, threads and providers would take hours. The reference circuit
(GPT-2 Small's shape) meets every contestant at batch 1 and 32, where the bars are, and the ones a user would choose
between at 8 and 128 and on one thread, because how time grows with threads does not depend on the task.
The other circuits meet the baselines and our own forms at batch 1 and 32, and dense at 8 and 128. CUDA has contestants
of its own, because int8 is for the CPU and fp16 for CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporter.graph.options import Logits, Precision, Scales, Target

Engine = Literal["ours", "optimum", "quantize_dynamic", "eager", "compile"]
Size = Literal["smoke", "full"]
Provider = Literal["cpu", "cuda"]

BATCHES = (1, 8, 32, 128)
ALL_THREADS = 0  # as many as there are cores
ON_CUDA = 0  # in results, where CPU figures have their threads


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case's answers.

    engine: whose graph it is; `quantize_dynamic` is ONNX Runtime's quantisation of our dense file, `eager` and
    `compile` are PyTorch. `task` keeps the embeddings of the task's vocabulary alone, and computes the prompts'
    common opening at export. `target` may be ONNX Runtime's own operators, `scales` one scale for each token in int8,
    with which no answer depends on the other prompts of a batch. `graph` replays a CUDA graph.
    """

    name: str
    label: str
    engine: Engine = "ours"
    dense: bool = False
    logits: Logits = "all"
    task: bool = False
    precision: Precision = "fp32"
    target: Target = "portable"
    scales: Scales = "tensor"
    external_data: bool = False
    io_binding: bool = False
    graph: bool = False

    @property
    def in_onnx(self) -> bool:
        """Whether it is a file that ONNX Runtime runs."""
        return self.engine not in ("eager", "compile")

    @property
    def exact(self) -> bool:
        """Whether its logits are to be those of PyTorch but for rounding in float32."""
        return self.precision == "fp32"


_CPU = (
    Contestant("dense", "dense, ONNX fp32", dense=True),
    Contestant("dense-optimum", "dense, Optimum", engine="optimum", dense=True),
    Contestant("dense-int8", "dense, int8", dense=True, precision="int8"),
    Contestant("dense-int8-ort", "dense, quantize_dynamic", engine="quantize_dynamic", dense=True, precision="int8"),
    Contestant("eager", "dense, PyTorch eager", engine="eager", dense=True),
    Contestant("compile", "dense, torch.compile", engine="compile", dense=True),
    Contestant("paper", "circuit as in the paper"),
    Contestant("last", "circuit, last position", logits="last"),
    Contestant("answers", "circuit, answers", logits="answers"),
    Contestant("task", "circuit, answers, task vocabulary", logits="answers", task=True),
    Contestant("task-external", "the same, external data", logits="answers", task=True, external_data=True),
    Contestant("ort", "circuit, answers, ORT operators", logits="answers", target="ort"),
    Contestant("int8", "circuit, answers, int8", logits="answers", precision="int8"),
    Contestant("int8-ort", "circuit, answers, int8, ORT operators", logits="answers", precision="int8", target="ort"),
    Contestant(
        "int8-token", "circuit, answers, int8, scales by token", logits="answers", precision="int8", scales="token"
    ),
    Contestant("task-int8", "circuit, answers, task vocabulary, int8", logits="answers", task=True, precision="int8"),
    Contestant(
        "task-int8-external",
        "the same, external data",
        logits="answers",
        task=True,
        precision="int8",
        external_data=True,
    ),
)
_CUDA = (
    Contestant("dense", "dense, ONNX fp32", dense=True),
    Contestant("dense-bound", "dense, fp32, IOBinding", dense=True, io_binding=True),
    Contestant("dense-fp16", "dense, fp16, IOBinding", dense=True, precision="fp16", io_binding=True),
    Contestant("eager", "dense, PyTorch eager", engine="eager", dense=True),
    Contestant("answers", "circuit, answers", logits="answers"),
    Contestant("bound", "circuit, answers, IOBinding", logits="answers", io_binding=True),
    Contestant("graph", "circuit, answers, CUDA graph", logits="answers", io_binding=True, graph=True),
    Contestant("fp16", "circuit, answers, fp16, IOBinding", logits="answers", precision="fp16", io_binding=True),
    Contestant("bf16", "circuit, answers, bf16, IOBinding", logits="answers", precision="bf16", io_binding=True),
    Contestant(
        "fp16-graph",
        "circuit, answers, fp16, CUDA graph",
        logits="answers",
        precision="fp16",
        io_binding=True,
        graph=True,
    ),
)
CONTESTANTS: dict[Provider, dict[str, Contestant]] = {
    "cpu": {contestant.name: contestant for contestant in _CPU},
    "cuda": {contestant.name: contestant for contestant in _CUDA},
}


@dataclass(frozen=True)
class Comparison:
    """Contestants that take turns on the same prompts. The first is what the others are held against."""

    case: str
    batch: int
    threads: int
    contestants: tuple[str, ...]
    provider: Provider = "cpu"

    @property
    def key(self) -> str:
        """Its name in results and test ids."""
        threads = "" if self.provider == "cuda" else f"-t{self.threads or 'all'}"
        return f"{self.case}-{self.provider}-b{self.batch}{threads}"


REFERENCE = "gpt2-reference"
_EVERYONE = tuple(c.name for c in _CPU if not c.external_data)  # memory alone is what external data changes
_CHOICES = ("dense", "dense-int8", "paper", "last", "answers", "int8")
_FEW = ("dense", "answers", "int8")
_OTHERS = ("dense", "dense-int8", "eager", "paper", "answers", "task", "int8", "int8-token", "task-int8")
CASES = {
    "full": (
        REFERENCE,
        "gpt2-acronym-like",
        "gpt2-ioi-like",
        "bundled-acronym",
        "bundled-greater-than",
        "bundled-ioi",
        "smollm2-acronym",
        "smollm2-ioi",
    ),
    "smoke": ("tiny",),
}


def plan_comparisons(size: Size) -> list[Comparison]:
    """Every comparison of a run, those of one case together, so that one model is in memory at a time."""
    if size == "smoke":
        names = tuple(name for name in _EVERYONE if name not in ("dense-optimum", "compile"))
        cpu = [Comparison("tiny", batch, threads, names) for batch, threads in ((1, ALL_THREADS), (8, 1))]
        return [*cpu, Comparison("tiny", 8, 1, tuple(CONTESTANTS["cuda"]), "cuda")]
    planned = []
    for case in CASES["full"]:
        if case == REFERENCE:
            planned += [Comparison(case, batch, ALL_THREADS, _EVERYONE) for batch in (1, 32)]
            planned += [Comparison(case, batch, ALL_THREADS, _CHOICES) for batch in (8, 128)]
            planned += [Comparison(case, batch, 1, _CHOICES) for batch in (1, 32)]
        else:
            planned += [Comparison(case, batch, ALL_THREADS, _OTHERS) for batch in (1, 32)]
            planned += [Comparison(case, batch, ALL_THREADS, _FEW) for batch in (8, 128)]
        planned += [Comparison(case, batch, ALL_THREADS, tuple(CONTESTANTS["cuda"]), "cuda") for batch in BATCHES]
    return planned


def plan_footprints(size: Size) -> list[tuple[str, str, Provider]]:
    """Which files are opened in a fresh process: case, contestant and provider."""
    planned: list[tuple[str, str, Provider]] = []
    for case in CASES[size]:
        if case in (REFERENCE, "tiny"):
            names = [c.name for c in _CPU if c.in_onnx and (size == "full" or c.engine != "optimum")]
        else:
            names = [name for name in _OTHERS if CONTESTANTS["cpu"][name].in_onnx]
        planned += [(case, name, "cpu") for name in names]
        # bound or as a graph it is the same file and the same weights on the device
        planned += [(case, c.name, "cuda") for c in _CUDA if c.in_onnx and not c.graph and c.name != "dense-bound"]
    return planned
