"""What to do, and what it takes: options checked, then model, prompts and circuit loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from exporter.circuit import Ablation, Align, Circuit, Mean
from exporter.data_check import find_limits, require_fitness, require_tokenizer
from exporter.errors import InputError, UsageError
from exporter.families import FAMILIES
from exporter.graph_options import Form, GraphOptions, Logits, Precision, Scales, Target
from exporter.loading import LanguageModel, load_model
from exporter.manifest import ModelInfo, TaskInfo, collect_versions
from exporter.onnx_export import require_growing
from exporter.runtime import has_int8_sums
from exporter.sources.checkpoint import PRECISIONS
from exporter.tasks import (
    DEFAULT_SIZES,
    SplitSizes,
    TaskData,
    Threshold,
    check_task,
    find_threshold,
    is_file_task,
    load_task,
    name_variant,
)

_SWEPT = ("mean", "position", "left", True)  # ablation, mean, align, mlps of every sweep


@dataclass(frozen=True)
class Job:
    """What to do. `alpha=None` takes the task's own; a `circuit` file is exported as it is, without a search.

    `task` is a name or a .jsonl or .csv file. `align` is the end that means by position are counted from; None is the
    first token, whose residual is unlike any other's in many models, so that a mean that mixes it with others'
    computes badly in float32. `device` is where the search runs, `dtype` what it computes in; all after it is
    float32. `resume` goes on from the journal that a killed job left beside `out`. `force` replaces an existing
    output, and takes a file's task that the model fails at. `bundle` is a folder to write instead of `out`, or beside
    it. `with_past` keeps keys and values between calls. `logits`, `target`, `precision`, `scales` and `external_data`
    are those of `GraphOptions`, the answers being the task's; `vocab` "task" keeps the embeddings of the task's
    tokens alone, and computes at export what all its prompts start with.
    """

    task: str
    out: Path | None
    model: str = "auto"
    revision: str | None = None
    alpha: float | None = None
    ablation: Ablation | None = None
    mean: Mean | None = None
    align: Align | None = None
    mlps: bool = True
    circuit: Path | None = None
    seed: int = 0
    sizes: SplitSizes = DEFAULT_SIZES
    parameters: dict[str, Any] = field(default_factory=dict)
    memory_limit: int | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    resume: bool = False
    force: bool = False
    bundle: Path | None = None
    with_past: bool = False
    logits: Logits = "last"
    vocab: Literal["full", "task"] = "full"
    target: Target = "portable"
    precision: Precision = "fp32"
    scales: Scales = "tensor"
    external_data: bool = False

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.out is not None and self.out.suffix != ".onnx":
            raise UsageError(f"--out is {str(self.out)!r}; give a name that ends in .onnx")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"--alpha is {self.alpha}; give a threshold above 0, in nats (such as 0.02)")
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"--device is {self.device!r}; choose from cpu, cuda")
        if self.dtype not in PRECISIONS:
            raise UsageError(f"--dtype is {self.dtype!r}; choose from {', '.join(PRECISIONS)}")
        if self.align is not None and (self.mean == "global" or self.ablation == "zero"):
            raise UsageError("--align is for means by position; leave it out, or take --mean position")
        if self.scales == "token" and self.precision != "int8":
            raise UsageError(f"--int8-scales is for --precision int8, not {self.precision}; leave it out")
        if self.external_data and self.out is not None and self.bundle is not None:
            raise UsageError("--external-data goes with --out or with --bundle; leave one of them out")
        searched = {
            "--alpha": self.alpha,
            "--ablation": self.ablation,
            "--mean": self.mean,
            "--align": self.align,
            "--no-mlps": not self.mlps,
            "--dtype": self.dtype != "float32",
        }
        given = [name for name, value in searched.items() if value]
        if self.circuit is not None and given:
            raise UsageError(f"{given[0]} is for the search, and --circuit needs none; leave one of them out")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Those of the files that stand beside each other."""
        return (".onnx", ".onnx.data", ".json") if self.external_data else (".onnx", ".json")

    @property
    def written(self) -> list[Path]:
        """What the job leaves, the first being what its journal stands beside."""
        files = [] if self.out is None else [self.out.with_suffix(suffix) for suffix in self.suffixes]
        return files + ([] if self.bundle is None else [self.bundle])


@dataclass(frozen=True)
class Plan:
    """A job with its inputs loaded and checked, and nothing computed yet."""

    job: Job
    model: LanguageModel
    data: TaskData
    circuit: Circuit | None
    notes: tuple[str, ...]

    def to_float32(self) -> Plan:
        """The same plan with the model in float32; the model of this one is used up."""
        return replace(self, model=self.model.to_float32())

    @property
    def alpha(self) -> float:
        """The threshold of the search, in nats."""
        return self.job.alpha or self.default_threshold.alpha

    @property
    def default_threshold(self) -> Threshold:
        """The threshold where none is given."""
        data, model, job = self.data, self.model, self.job
        found = find_threshold(
            name_variant(data),
            file_sha256=data.parameters.get("sha256"),
            model=model.name,
            model_sha256=model.sha256,
        )
        if found.sweep is None or (job.ablation or "mean", job.mean or "position", self.align, job.mlps) == _SWEPT:
            return found
        origin = f"{found.origin} with means by position from the first token, MLPs searched"
        return replace(found, sweep=None, origin=origin)

    @property
    def padded(self) -> bool:
        """Whether prompts differ in length."""
        data = self.data
        return any(d.mask is not None for d in (data.patching, data.selection, data.test, *data.ood.values()))

    @property
    def align(self) -> Align:
        """The end that means by position are counted from."""
        if self.circuit is not None:
            return self.circuit.align
        return self.job.align or "left"

    def summary(self) -> dict[str, Any]:
        """What would be done, as JSON-able data."""
        data, info = self.data, self.model_info
        heads, mlps = info.n_layers * info.n_heads, info.n_layers if self.job.mlps else 0
        sets = {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}
        return {
            "model": info.model_dump(),
            "task": data.task,
            "prompts": {name: len(dataset) for name, dataset in sets.items()},
            "prompt_tokens": data.test.length,
            "example": self.example,
            "candidates": 0 if self.circuit else heads + mlps,
            "alpha": None if self.circuit else self.alpha,
            "parameters": self.model.dense.count_parameters(),
            "writes": [str(path) for path in self.job.written],
        }

    @property
    def form(self) -> Form:
        """What the exported file takes: a mask where prompts differ in length or answers have several tokens."""
        grows = self.padded or self.data.test.n_steps > 1
        return "past" if self.job.with_past else "masked" if grows else "plain"

    @property
    def options(self) -> GraphOptions:
        """How the circuit becomes a graph."""
        job, data = self.job, self.data
        sets = (data.patching, data.selection, data.test, *data.ood.values())
        is_task, plain = job.vocab == "task", self.form == "plain"
        return GraphOptions(
            form=self.form,
            logits=job.logits,
            answer_ids=data.answer_ids if job.logits == "answers" else (),
            vocabulary=data.input_ids if is_task else None,
            length=data.test.length if is_task and plain and len({d.length for d in sets}) == 1 else None,
            opening=data.opening if is_task and plain and job.logits != "all" else (),
            target=job.target,
            precision=job.precision,
            scales=job.scales,
            weight_type="int8" if has_int8_sums() else "uint8",
            external_data=job.external_data,
        )

    @property
    def example(self) -> str:
        """The first test prompt as text."""
        test = self.data.test
        ids = test.input_ids[0] if test.mask is None else test.input_ids[0][test.mask[0]]
        return str(require_tokenizer(self.model).decode(ids.tolist()))

    @property
    def alpha_sweep(self) -> dict[str, Any] | None:
        """Where the threshold comes from, when it was swept for just this search."""
        return self.default_threshold.sweep if self.takes_default_alpha else None

    @property
    def takes_default_alpha(self) -> bool:
        """Whether there is a search, and nobody gave its threshold."""
        return self.circuit is None and self.job.alpha is None

    @property
    def alpha_notes(self) -> tuple[str, ...]:
        """What to say of a threshold that nobody gave and no sweep was made for."""
        found = self.default_threshold
        if not self.takes_default_alpha or found.sweep is not None:
            return ()
        return (f"alpha is {found.alpha:g}, {found.origin}; not swept for this search: compare a few (--alpha)",)

    @property
    def search_key(self) -> dict[str, Any]:
        """All that a search's decisions depend on, for its journal."""
        job = self.job
        return {
            "model": self.model.sha256,
            "task": self.data.task,
            "prompts": hash_sets(self.data),
            "circuit": None if self.circuit is None else self.circuit.to_json(),
            "alpha": self.alpha,
            "ablation": job.ablation or "mean",
            "mean": job.mean or "position",
            "align": self.align,
            "mlps": job.mlps,
            "device": job.device,
            "dtype": job.dtype,
            "versions": collect_versions(),
        }

    @property
    def task_info(self) -> TaskInfo:
        """The task, for the manifest."""
        return TaskInfo(name=self.data.task, parameters=self.data.parameters, sha256=hash_sets(self.data))

    @property
    def model_info(self) -> ModelInfo:
        """The dense model, for the manifest."""
        model, family = self.model, FAMILIES[self.model.family]
        return ModelInfo(
            name=model.name,
            revision=model.revision,
            sha256=model.sha256,
            family=model.family,
            n_layers=family.n_layers(model.hf),
            n_heads=family.n_heads(model.hf),
        )


def prepare(job: Job) -> Plan:
    """Load the model, build the task's sets, read the circuit file; raises what is wrong with any of them."""
    circuit = None if job.circuit is None else Circuit.load(job.circuit)
    model = load_model(job.model, revision=job.revision, dtype=job.dtype)
    family = FAMILIES[model.family]
    if circuit is not None:
        circuit.check_fits(n_layers=family.n_layers(model.hf), n_heads=family.n_heads(model.hf))
    data = load_task(
        job.task,
        require_tokenizer(model),
        seed=job.seed,
        sizes=job.sizes,
        limits=find_limits(model.dense),
        **job.parameters,
    )
    if data.test.length > model.dense.max_length:
        raise InputError(
            f"the task's prompts have {data.test.length} tokens, the model takes {model.dense.max_length}; "
            "choose a model with a longer context"
        )
    doubts = require_fitness(job.task, model, data.selection, force=job.force) if is_file_task(job.task) else ()
    precision = () if job.dtype == "float32" else (f"the search computed in {job.dtype}",)
    plan = Plan(job, model, data, circuit, (*model.notes, *doubts, *precision))
    plan = replace(plan, notes=(*plan.notes, *plan.alpha_notes))
    if job.with_past:
        by_position = job.ablation != "zero" and job.mean != "global"
        require_growing(by_position=circuit.fixed_length if circuit else by_position, align=plan.align)
    return plan


def hash_sets(data: TaskData) -> str:
    """sha256 over the token ids of every set, so that a later run knows whether it has the same prompts."""
    digest = hashlib.sha256()
    for dataset in (data.patching, data.selection, data.test, *data.ood.values()):
        digest.update(dataset.input_ids.numpy().tobytes())
        digest.update(dataset.answer_ids.numpy().tobytes())
        for tensor in (dataset.mask, dataset.choice_ids):
            digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
