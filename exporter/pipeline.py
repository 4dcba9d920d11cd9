"""The main job: from a model and a task to an exact ONNX file and its manifest.

Each stage is one call of the library; what is written appears all at once at the end, or not at all.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from exporter.checkpoint import PRECISIONS
from exporter.circuit import Ablation, Circuit, Decision, Mean
from exporter.circuit_model import CircuitModel
from exporter.errors import InputError, MissingRuntimeError, UsageError
from exporter.evaluate import evaluate_circuit
from exporter.families import FAMILIES
from exporter.files import OutputSet, recover
from exporter.journal import Journal, journal_path
from exporter.loading import LanguageModel, load_model
from exporter.manifest import Manifest, ModelInfo, Origin, Size, TaskInfo, collect_versions, hash_file
from exporter.means import compute_replacements
from exporter.measure import Latency, compare_latency
from exporter.onnx_export import export_onnx
from exporter.ranks import Ranks, join_ranks
from exporter.rewrite import fold_model, rewrite_model
from exporter.runtime import import_onnxruntime
from exporter.search import OnDecision, find_circuit
from exporter.slicing import slice_model
from exporter.tasks import DEFAULT_SIZES, TASKS, SplitSizes, TaskData, load_task
from exporter.verify import Exactness, verify_export

LATENCY_BATCHES = (1, 32)
SUFFIXES = (".onnx", ".json")


@dataclass(frozen=True)
class Job:
    """What to do. `alpha=None` takes the task's own; a `circuit` file is exported as it is, without a search.

    `device` is where the search runs, `dtype` what it computes in; all after it is float32. `resume` goes on from
    the journal that a killed job left beside `out`.
    """

    task: str
    out: Path | None
    model: str = "auto"
    revision: str | None = None
    alpha: float | None = None
    ablation: Ablation | None = None
    mean: Mean | None = None
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

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"unknown task {self.task!r}; choose from {', '.join(TASKS)}")
        if self.out is not None and self.out.suffix != ".onnx":
            raise UsageError(f"--out is {str(self.out)!r}; give a name that ends in .onnx")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"--alpha is {self.alpha}; give a threshold above 0, in nats (such as 0.02)")
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"--device is {self.device!r}; choose from cpu, cuda")
        if self.dtype not in PRECISIONS:
            raise UsageError(f"--dtype is {self.dtype!r}; choose from {', '.join(PRECISIONS)}")
        searched = {"--alpha": self.alpha, "--ablation": self.ablation, "--mean": self.mean, "--no-mlps": not self.mlps}
        searched["--dtype"] = self.dtype != "float32"
        given = [name for name, value in searched.items() if value]
        if self.circuit is not None and given:
            raise UsageError(f"{given[0]} is for the search, and --circuit needs none; leave one of them out")


@dataclass(frozen=True)
class Plan:
    """A job with its inputs loaded and checked, and nothing computed yet."""

    job: Job
    model: LanguageModel
    data: TaskData
    circuit: Circuit | None

    def to_float32(self) -> Plan:
        """The same plan with the model in float32; the model of this one is used up."""
        return replace(self, model=self.model.to_float32())

    @property
    def alpha(self) -> float:
        """The threshold of the search, in nats."""
        return self.job.alpha or TASKS[self.job.task].alpha

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
            "example": _require_tokenizer(self.model).decode(data.test.input_ids[0].tolist()),
            "candidates": 0 if self.circuit else heads + mlps,
            "alpha": None if self.circuit else self.alpha,
            "parameters": self.model.dense.count_parameters(),
            "writes": [] if self.job.out is None else [str(self.job.out.with_suffix(s)) for s in SUFFIXES],
        }

    @property
    def alpha_sweep(self) -> dict[str, Any] | None:
        """Where the threshold comes from, when it is the task's own."""
        searched_with_default = self.circuit is None and self.job.alpha is None
        return dict(TASKS[self.job.task].sweep) if searched_with_default else None

    @property
    def search_key(self) -> dict[str, Any]:
        """All that a search's decisions depend on, for its journal."""
        job = self.job
        return {
            "model": self.model.sha256,
            "task": self.data.task,
            "prompts": _hash_sets(self.data),
            "circuit": None if self.circuit is None else self.circuit.to_json(),
            "alpha": self.alpha,
            "ablation": job.ablation or "mean",
            "mean": job.mean or "position",
            "mlps": job.mlps,
            "device": job.device,
            "dtype": job.dtype,
            "versions": collect_versions(),
        }

    @property
    def task_info(self) -> TaskInfo:
        """The task, for the manifest."""
        return TaskInfo(name=self.data.task, parameters=self.data.parameters, sha256=_hash_sets(self.data))

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
    data = load_task(job.task, _require_tokenizer(model), seed=job.seed, sizes=job.sizes, **job.parameters)
    if data.test.length > model.dense.max_length:
        raise InputError(
            f"the task's prompts have {data.test.length} tokens, the model takes {model.dense.max_length}; "
            "choose a model with a longer context"
        )
    return Plan(job, model, data, circuit)


def _require_tokenizer(model: LanguageModel) -> Any:
    if model.tokenizer is None:
        raise InputError(f"the model {model.name} has no tokenizer; put its tokenizer.json beside config.json")
    return model.tokenizer


def _hash_sets(data: TaskData) -> str:
    """sha256 over the token ids of every set, so that a later run knows whether it has the same prompts."""
    digest = hashlib.sha256()
    for dataset in (data.patching, data.selection, data.test, *data.ood.values()):
        digest.update(dataset.input_ids.numpy().tobytes())
        digest.update(dataset.answer_ids.numpy().tobytes())
    return digest.hexdigest()


class _Clock:
    """Says which stage has begun, and keeps how long each took."""

    def __init__(self, on_stage: Callable[[str], None] | None) -> None:
        self.on_stage = on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.on_stage is not None:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def run_job(
    job: Job,
    *,
    on_stage: Callable[[str], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_decision: OnDecision | None = None,
) -> Manifest | None:
    """Do the job and return its manifest; leaves `out` and the manifest beside it, or nothing at all.

    Under torchrun every rank calls this; all but rank 0 only help to search, and return None. Raises
    ExactnessError when hooked, rewritten and exported model disagree, InputError for what cannot be read
    or written, MissingRuntimeError without ONNX Runtime or the device.
    """
    assert job.out is not None
    import_onnxruntime()
    if job.device == "cuda" and not torch.cuda.is_available():
        raise MissingRuntimeError(
            "no CUDA device that torch can use; leave --device out, or run `export-circuit doctor`"
        )
    clock = _Clock(on_stage)
    with join_ranks(job.device) as ranks:
        if not ranks.leads:
            plan = prepare(job)
            decided = cast("list[Decision]", ranks.share(None))
            if plan.circuit is None:
                _search(plan, decided, ranks, None)
            return None
        with OutputSet(job.out, suffixes=SUFFIXES, force=job.force) as output:
            with clock.stage("load"):
                plan = prepare(job)
            if on_plan is not None:
                on_plan(plan)
            with Journal(journal_path(job.out), plan.search_key, resume=job.resume) as journal:
                with clock.stage("search"):
                    ranks.share(journal.decisions)
                    circuit = plan.circuit or _search_with_journal(plan, journal, ranks, on_decision)
                manifest = _build(plan.to_float32(), circuit, output.path(".onnx"), clock)
                output.path(".json").write_text(manifest.to_json(), encoding="utf-8")
                output.commit()
    return manifest


def _search_with_journal(plan: Plan, journal: Journal, ranks: Ranks, on_decision: OnDecision | None) -> Circuit:
    """Search from where the journal is, and write every new decision into it."""
    known = len(journal.decisions)

    def note(decision: Decision, done: int, total: int) -> None:
        if done > known:
            journal.add(decision)
        if on_decision is not None:
            on_decision(decision, done, total)

    return _search(plan, journal.decisions[:known], ranks, note)


def _search(plan: Plan, decided: Sequence[Decision], ranks: Ranks, on_decision: OnDecision | None) -> Circuit:
    job, data = plan.job, plan.data
    return find_circuit(
        plan.model,
        data.patching,
        data.selection,
        alpha=plan.alpha,
        ablation=job.ablation or "mean",
        mean=job.mean or "position",
        mlps=job.mlps,
        memory_limit=job.memory_limit,
        prior=decided,
        ranks=ranks,
        on_decision=on_decision,
    )


def _build(plan: Plan, circuit: Circuit, path: Path, clock: _Clock) -> Manifest:
    """Rewrite, export to `path`, verify, evaluate, measure."""
    model, data = plan.model, plan.data
    with clock.stage("rewrite"):
        means = compute_replacements(model.dense, data.patching, ablation=circuit.ablation, mean=circuit.mean)
        sliced = slice_model(model.dense, circuit, means)
        rewritten = fold_model(sliced)
    with clock.stage("export"):
        origin = Origin(task=plan.task_info, model=plan.model_info, circuit=circuit)
        description = export_onnx(rewritten, path, metadata=origin.to_metadata())
    with clock.stage("verify"):
        exactness = verify_export(model, circuit, rewritten, path, patching=data.patching, prompts=data.test)
    with clock.stage("evaluate"):
        sets = {"test": data.test, **data.ood}
        figures = {
            name: evaluate_circuit(model.dense.next_token_logits, rewritten.next_token_logits, prompts)
            for name, prompts in sets.items()
        }
    assert plan.job.out is not None
    with clock.stage("measure"):
        dense_bytes, latency = _measure_dense(model.dense, path, data)
    return Manifest(
        schema=1,
        task=plan.task_info,
        model=plan.model_info,
        circuit=circuit.to_json(),
        alpha_sweep=plan.alpha_sweep,
        size=_measure_size(model.dense, sliced),
        test=figures.pop("test"),
        ood=figures,
        exactness=exactness,
        onnx=description,
        latency=latency,
        dense_onnx_bytes=dense_bytes,
        files={plan.job.out.name: hash_file(path)},
        seconds=clock.seconds,
        versions=collect_versions(),
        notes=[*model.notes, *([] if plan.job.dtype == "float32" else [f"the search computed in {plan.job.dtype}"])],
    )


def _measure_size(dense: CircuitModel, sliced: CircuitModel) -> Size:
    before, after = dense.count_parameters(), sliced.count_parameters()
    return Size(dense=before, circuit=after, constants=sliced.count_constants(), reduction=1 - after / before)


def _measure_dense(dense: CircuitModel, path: Path, data: TaskData) -> tuple[int, list[Latency]]:
    """The dense model, exported the same way: the bytes of its file, and its latency against the circuit's."""
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as folder:
        dense_path = Path(folder) / "dense.onnx"
        export_onnx(dense, dense_path)
        prompts = data.test.input_ids
        batches = [prompts.repeat(-(-batch // len(prompts)), 1)[:batch] for batch in LATENCY_BATCHES]
        return dense_path.stat().st_size, [compare_latency(dense_path, path, batch) for batch in batches]


def reverify(path: Path, *, model: str | None = None) -> Exactness:
    """Run the exactness gate again on a file on disk, from what the file says of itself.

    `model` is where to load the dense model from now (default: where it came from). Raises InputError
    when the file or the model is not the right one, ExactnessError when logits differ.
    """
    recover(path)
    origin = Origin.read(path)
    loaded = load_model(model or origin.model.name, revision=None if model else origin.model.revision)
    if loaded.sha256 != origin.model.sha256:
        raise InputError(
            f"the weights of {loaded.name} (sha256 {loaded.sha256[:12]}) are not those the circuit came from "
            f"({origin.model.sha256[:12]}); give the right model with --model"
        )
    spec, parameters = TASKS.get(origin.task.name), origin.task.parameters
    if spec is None:
        raise InputError(f"{path} was made for the task {origin.task.name!r}, which this version does not have")
    data = load_task(
        origin.task.name,
        _require_tokenizer(loaded),
        seed=parameters["seed"],
        sizes=SplitSizes(**parameters["sizes"]),
        **{name: parameters[name] for name in spec.choices},
    )
    if _hash_sets(data) != origin.task.sha256:
        raise InputError(f"this version builds other prompts for {origin.task.name} than {path} was made with")
    rewritten = rewrite_model(loaded, origin.circuit, data.patching)
    return verify_export(loaded, origin.circuit, rewritten, path, patching=data.patching, prompts=data.test)
