"""The options of a job, validated once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from exporter.checks import require_choice, require_type, take_integer
from exporter.circuit import Ablation
from exporter.errors import InputError, UsageError
from exporter.files.names import REPORT_SUFFIX, SUFFIXES
from exporter.graph.options import OPSETS, Logits, Precision, Scales, Target, WeightType
from exporter.metrics import METRICS, SEARCHED
from exporter.outputs.targets import take_targets
from exporter.search.healing import Heal
from exporter.search.lessons import Teacher
from exporter.search.rules import Budget
from exporter.tasks import SplitSizes, check_task

_TYPES: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "model": (str,),
    "revision": (str, type(None)),
    "alpha": (int, float, type(None)),
    "sizes": (SplitSizes, type(None)),
    "parameters": (dict,),
    **dict.fromkeys(("mlps", "resume", "force", "with_past", "external_data", "report", "guard"), (bool,)),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("cpu", "cuda"),
    "metric": SEARCHED,
    "dtype": ("float32", "bfloat16", "float16"),
    "logits": get_args(Logits),
    "vocab": ("full", "task"),
    "target": get_args(Target),
    "precision": get_args(Precision),
    "weights": get_args(WeightType),
    "heal": get_args(Heal),
    "teacher": get_args(Teacher),
}


_NOT_SEARCHED = "{name} is for the search, and --circuit needs none; leave one of them out"


@dataclass(frozen=True)
class Job:
    """The options of one job. `alpha=None` takes the task's default; a `circuit` file is exported without a search.

    metric: what the greedy search minimises; but for KL it needs an alpha, in its unit.

    preset: `deploy` is the gradual search under a `budget`, healed as `heal` and `teacher` say, and `paper` the greedy
    one with alpha; None is `paper` where an alpha is given, else `deploy`.

    `task` is a name or a .jsonl or .csv file; `sizes` are those of its sets, by default as in `load_task`.
    `ablation=None` takes means by position, aligned left: in many models the first token's residual differs strongly
    from the others', and a mean over both loses precision in float32. A `circuit` file has its own. `memory_limit` is
    in bytes. `device` and `dtype` are the search's; the stages after it compute in float32. `resume` continues from the
    journal beside the first output. `force` replaces an existing output, and accepts a task file at which the model is
    no better than chance. `bundle` is a folder to write instead of `out`, or beside it, and `targets` the runtimes
    that it is for (`exporter.outputs.targets`; none: the usual files). `report` writes a page for
    reading beside each manifest. `with_past` exports a graph with a key-value cache. `logits`, `target`, `precision`,
    `scales`, `weights` (its weight_type), `external_data`, `guard` and `opset` are those of `GraphOptions`, with the
    task's answers as `answer_ids`; `scales=None` takes what the bundle's readers need (`choose_scales`); `vocab` "task"
    keeps only the embeddings of the task's tokens, and precomputes the shared opening of its prompts.

    Raises InputError: a value of a wrong type or none of the choices; UsageError: an unknown task, an alpha that is
    not above 0, output names that do not fit, or options that exclude each other.
    """

    task: str
    out: Path | None
    model: str = "auto"
    revision: str | None = None
    preset: Literal["deploy", "paper"] | None = None
    alpha: float | None = None
    metric: str = "kl"
    budget: Budget | None = None
    heal: Heal = "distil"
    teacher: Teacher = "dense"
    ablation: Ablation | None = None
    mlps: bool = True
    circuit: Path | None = None
    seed: int = 0
    sizes: SplitSizes | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    memory_limit: int | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    resume: bool = False
    force: bool = False
    bundle: Path | None = None
    targets: tuple[str, ...] = ()
    with_past: bool = False
    logits: Logits = "last"
    vocab: Literal["full", "task"] = "full"
    target: Target = "portable"
    precision: Precision = "fp32"
    scales: Scales | None = None
    weights: WeightType = "uint8"
    external_data: bool = False
    report: bool = False
    guard: bool = False
    opset: int = 20

    def __post_init__(self) -> None:
        self._check_types()
        check_task(self.task)
        self._check_outputs()
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"--alpha is {self.alpha}; give a threshold above 0, in nats (such as 0.02)")
        of_int8 = {"scales": self.scales is not None, "weights": self.weights != "uint8"}
        for name, is_given in of_int8.items():
            if is_given and self.precision != "int8":
                raise UsageError(f"--int8-{name} is for --precision int8, not {self.precision}; leave it out")
        if self.external_data and self.out is not None and self.bundle is not None:
            raise UsageError("--external-data goes with --out or with --bundle; leave one of them out")
        if self.logits == "classes" and self.with_past:
            raise UsageError("--with-past is for generating, and --logits classes answers once; leave one of them out")
        self._check_preset()
        searched = {
            "--preset": self.preset,
            "--alpha": self.alpha,
            "--metric": self.metric != "kl",
            "a budget": self.budget is not None,
            "--ablation": self.ablation is not None,
            "--no-mlps": not self.mlps,
            "--dtype": self.dtype != "float32",
            "--heal": self.heal != "distil",
            "--teacher": self.teacher != "dense",
        }
        given = [name for name, value in searched.items() if value]
        if self.circuit is not None and given:
            raise UsageError(_NOT_SEARCHED.format(name=given[0]))

    @property
    def is_gradual(self) -> bool:
        """Whether there is a search, the gradual one, under a budget."""
        return self.circuit is None and is_gradual(self.preset, self.budget, self.alpha)

    def _check_preset(self) -> None:
        """Raise UsageError for what is of the other preset."""
        require_type("budget", self.budget, Budget, type(None))
        require_choice("--preset", self.preset or "paper", ("deploy", "paper"))
        if self.circuit is not None:
            return
        if self.is_gradual:
            others = {"--alpha": self.alpha is not None, "--metric": self.metric != "kl"}
            others["--dtype"] = self.dtype != "float32"
            mended = "leave it out, or take --preset paper without a budget"
        else:
            others = {"a budget": self.budget is not None, "--heal": self.heal != "distil"}
            others["--teacher"] = self.teacher != "dense"
            mended = "leave it out, or take --preset deploy"
        if self.heal == "none" and self.teacher != "dense":
            raise UsageError("--teacher is for healing, and --heal none has none; leave one of them out")
        if self.heal == "refit" and self.teacher != "dense":
            raise UsageError("--heal refit is after the dense model; leave --teacher out, or take --heal distil")
        for name, given in others.items():
            if given:
                raise UsageError(f"{name} is not for the {'gradual' if self.is_gradual else 'greedy'} search; {mended}")
        if self.metric != "kl" and self.alpha is None:
            unit = METRICS[self.metric].unit
            raise UsageError(f"--metric {self.metric} has no threshold of its own; give --alpha, in its unit ({unit})")

    def _check_types(self) -> None:
        """Raise InputError for a value of a wrong type, UsageError for an empty model; texts become paths."""
        for name in ("out", "bundle", "circuit"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
            require_type(name, getattr(self, name), Path, type(None))
        object.__setattr__(self, "task", str(self.task) if isinstance(self.task, Path) else self.task)
        for name, kinds in _TYPES.items():
            require_type(name, getattr(self, name), *kinds)
        for name, choices in _CHOICES.items():
            require_choice(f"--{name}", getattr(self, name), choices)
        require_choice("--int8-scales", self.scales or "tensor", get_args(Scales))
        if self.ablation is not None:
            object.__setattr__(self, "ablation", Ablation.take(self.ablation))
        take_integer("seed", self.seed)
        if take_integer("--opset", self.opset) not in OPSETS:
            raise InputError(f"--opset is {self.opset}; choose from {', '.join(map(str, OPSETS))}")
        if self.memory_limit is not None:
            take_integer("memory_limit", self.memory_limit, least=1)
        if not self.model.strip():
            raise UsageError("--model is empty; give a folder, a file, a hub name or 'auto'")

    def _check_outputs(self) -> None:
        """Raise UsageError for an `out` without .onnx, or for an `out` and a `bundle` that overwrite each other."""
        if self.out is not None and self.out.suffix != ".onnx":
            small = " in small letters" if self.out.suffix.lower() == ".onnx" else ""
            raise UsageError(f"--out is {str(self.out)!r}; give a name that ends in .onnx{small}")
        object.__setattr__(self, "targets", take_targets(self.targets))
        if self.targets and self.bundle is None:
            raise UsageError("--for says what a bundle is for; give --bundle, or leave --for out")
        if self.out is None or self.bundle is None:
            return
        bundle = self.bundle.absolute()
        ours = [self.out.with_suffix(suffix) for suffix in (*SUFFIXES, REPORT_SUFFIX, ".onnx.journal")]
        if bundle in (path.absolute() for path in ours):
            raise UsageError(f"--bundle {self.bundle} is the name of a file of --out; give another one")
        if bundle in self.out.absolute().parents:
            raise UsageError(f"--out is in the folder of --bundle, {self.bundle}; write it beside that")

    @property
    def written(self) -> list[Path]:
        """The output paths, without external weight files. The journal lies beside the first."""
        suffixes = (*SUFFIXES, REPORT_SUFFIX) if self.report else SUFFIXES
        files = [] if self.out is None else [self.out.with_suffix(suffix) for suffix in suffixes]
        return files + ([] if self.bundle is None else [self.bundle])


def is_gradual(preset: str | None, budget: Budget | None, alpha: float | None) -> bool:
    """Whether these options ask for the gradual search: where no preset is named, all but an alpha does."""
    return preset == "deploy" or (preset is None and (alpha is None or budget is not None))


def choose_ablation(kind: str | None, by: str | None, align: str | None, *, searched: bool) -> Ablation | None:
    """The ablation of --ablation, --mean and --align; None where none of them is given.

    Raises UsageError: an option without a search (`searched` is False), or --align without means by position;
    InputError: none of the choices.
    """
    options = {"--ablation": kind, "--mean": by, "--align": align}
    for name, value in options.items():
        if value is not None and not searched:
            raise UsageError(_NOT_SEARCHED.format(name=name))
    given = {name: value for name, value in (("kind", kind), ("by", by), ("align", align)) if value is not None}
    chosen = Ablation(**given)  # type: ignore[arg-type]  # checked there
    if align is not None and not chosen.fixed_length:
        raise UsageError("--align is for means by position; leave it out, or take --mean position")
    return chosen if given else None
