"""A job with its inputs: model, prompts and circuit, loaded and checked before the search."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from exporter.circuit import Ablation, Circuit, SearchRecord, load_circuit
from exporter.errors import InputError
from exporter.evidence.fitness import find_limits, require_fitness, require_tokenizer
from exporter.graph.export import require_growing
from exporter.graph.metadata import ModelInfo, TaskInfo, collect_versions
from exporter.graph.options import Form, GraphOptions
from exporter.job.options import Job
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel, load_model
from exporter.metrics.divergence import ARITHMETIC
from exporter.outputs.healed import load_surgery
from exporter.outputs.targets.scales import choose_scales
from exporter.outputs.targets.target import GENERATING
from exporter.rewrite.surgery import Surgery
from exporter.search.lessons import require_labels
from exporter.search.rounds import count_lessons
from exporter.search.rules import DEPLOY, AlphaRule, Budget
from exporter.search.thresholds import Threshold, find_threshold
from exporter.tasks import SplitSizes, TaskData, is_file_task, load_task, name_variant
from exporter.tasks.classes import name_classes

_SWEPT = (Ablation(), True)  # ablation, mlps of every sweep


@dataclass(frozen=True)
class Plan:
    """A job with its inputs.

    `circuit` is the one that was given, `record` what its file says of its search, and `surgery` its healed weights.
    """

    job: Job
    model: LanguageModel
    data: TaskData
    circuit: Circuit | None
    record: SearchRecord
    notes: tuple[str, ...]
    surgery: Surgery | None = None

    def to_float32(self) -> Plan:
        """The same plan with the model in float32; frees this plan's model, to save memory. Raises InputError."""
        return replace(self, model=self.model.to_float32())

    @property
    def alpha(self) -> float:
        """The threshold of the search, in the unit of its metric."""
        return self.job.alpha or self.default_threshold.alpha

    @property
    def rule(self) -> AlphaRule | Budget:
        """What the search has to keep to."""
        return self.job.budget or DEPLOY if self.job.is_gradual else AlphaRule(self.alpha)

    @property
    def default_threshold(self) -> Threshold:
        """The threshold of a job without `alpha`; `sweep` is None if it was swept with another ablation or `mlps`."""
        data, model, job = self.data, self.model, self.job
        found = find_threshold(
            name_variant(data),
            file_sha256=data.parameters.get("sha256"),
            model=model.name,
            model_sha256=model.sha256,
        )
        if found.sweep is None or (self.ablation, job.mlps) == _SWEPT:
            return found
        origin = f"{found.origin} with means by position from the first token, MLPs searched"
        return replace(found, sweep=None, origin=origin)

    @property
    def padded(self) -> bool:
        """Whether prompts differ in length."""
        data = self.data
        return any(d.mask is not None for d in (data.patching, data.selection, data.test, *data.ood.values()))

    @property
    def ablation(self) -> Ablation:
        """The ablation of the circuit file, or else of the job."""
        return self.circuit.ablation if self.circuit is not None else self.job.ablation or Ablation()

    def summary(self) -> dict[str, Any]:
        """The plan of a dry run, as JSON-able data."""
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
            "alpha": None if self.circuit or self.job.is_gradual else self.alpha,
            **({} if self.job.metric == "kl" else {"metric": self.job.metric}),
            **({"budget": self.rule.to_json()} if isinstance(self.rule, Budget) else {}),
            "parameters": self.model.dense.count_parameters(),
            "writes": [str(path) for path in self.job.written],
        }

    @property
    def form(self) -> Form:
        """The form of the graph: `past` where asked for, else `masked` or `plain`.

        A mask is needed for prompts of several lengths, for answers of several tokens, and by a classifier, whose
        pipelines pad the texts of a batch, unless it takes one length alone. A past is also there for Optimum.
        """
        is_classifier = self.job.logits == "classes" and not (self.ablation.fixed_length or self._length)
        is_padded = self.padded or self.data.test.n_steps > 1 or is_classifier
        return "past" if self.job.with_past or self._generates_in_optimum else "masked" if is_padded else "plain"

    @property
    def _generates_in_optimum(self) -> bool:
        """Whether the file is for Optimum, which by itself generates with a past alone, and can have one."""
        grows = not (self.ablation.fixed_length and self.ablation.align == "right")
        return "optimum" in self.job.targets and self.job.logits in GENERATING and grows

    @property
    def _length(self) -> int | None:
        """Tokens of every prompt where embeddings are cut to the task's, whose prompts are all as long; else None."""
        data, sets = self.data, (self.data.patching, self.data.selection, self.data.test, *self.data.ood.values())
        alike = self.job.vocab == "task" and not self.padded and len({d.length for d in sets}) == 1
        return data.test.length if alike else None

    @property
    def options(self) -> GraphOptions:
        """The options of the exported graph."""
        job, data = self.job, self.data
        is_task, plain = job.vocab == "task", self.form == "plain"
        return GraphOptions(
            form=self.form,
            logits=job.logits,
            answer_ids=data.answer_ids if job.logits in ("answers", "classes") else (),
            labels=name_classes(data, require_tokenizer(self.model)) if job.logits == "classes" else (),
            vocabulary=data.input_ids if is_task else None,
            length=self._length if plain else None,
            opening=data.opening if is_task and plain and job.logits != "all" else (),
            target=job.target,
            precision=job.precision,
            scales=choose_scales(job.scales, job.precision, job.targets),
            weight_type=job.weights,
            external_data=job.external_data,
            guard=job.guard,
            opset=job.opset,
            optimum=self._generates_in_optimum,
        )

    @property
    def example(self) -> str:
        """The first test prompt as text."""
        test = self.data.test
        ids = test.input_ids[0] if test.mask is None else test.input_ids[0][test.mask[0]]
        return str(require_tokenizer(self.model).decode(ids.tolist()))

    @property
    def alpha_sweep(self) -> dict[str, Any] | None:
        """The sweep that chose the default threshold; None without one for this very search, or with a given alpha."""
        return self.default_threshold.sweep if self.takes_default_alpha else None

    @property
    def takes_default_alpha(self) -> bool:
        """Whether there is a search, by a threshold that nobody gave."""
        return self.circuit is None and self.job.alpha is None and not self.job.is_gradual

    @property
    def ablation_notes(self) -> tuple[str, ...]:
        """A note on zero ablation with value biases, which TransformerLens defines otherwise (docs/ablation.md)."""
        biased = any(getattr(sublayer, "b_V", None) is not None for sublayer in self.model.dense.sublayers())
        if self.ablation.kind != "zero" or not biased:
            return ()
        return (
            "zero ablation: a removed head adds nothing. TransformerLens by default moves value biases into the output "
            "bias, where a zeroed head still adds them: compare with fold_value_biases=False (docs/ablation.md)",
        )

    @property
    def alpha_notes(self) -> tuple[str, ...]:
        """A note on a default threshold that was not swept for this search."""
        found = self.default_threshold
        if not self.takes_default_alpha or found.sweep is not None:
            return ()
        return (f"alpha is {found.alpha:g}, {found.origin}; not swept for this search: compare a few (--alpha)",)

    @property
    def search_key(self) -> dict[str, Any]:
        """The journal's key: the inputs and settings that the search's decisions or sizes depend on."""
        job, rule = self.job, self.rule
        return {
            "model": self.model.sha256,
            "task": self.data.task,
            "prompts": hash_sets(self.data),
            "circuit": None if self.circuit is None else self.circuit.to_json() | self.record.to_json(),
            **(self._gradual_key(rule) if isinstance(rule, Budget) else {"alpha": self.alpha}),
            **({} if job.metric == "kl" else {"metric": job.metric}),
            **self.ablation.to_json(),
            "mlps": job.mlps,
            "device": job.device,
            "dtype": job.dtype,
            "arithmetic": ARITHMETIC,
            "versions": collect_versions(),
        }

    def _gradual_key(self, budget: Budget) -> dict[str, Any]:
        """What a gradual search depends on beside; a network is timed in the form in which it is to be exported."""
        key: dict[str, Any] = {"search": "gradual", "budget": budget.to_json(), "seed": self.job.seed}
        key |= {"heal": self.job.heal, "teacher": self.job.teacher}
        if budget.max_latency_ms is not None:
            names = ("logits", "target", "precision", "scales", "external_data", "weight_type")
            file, later = self.options.to_json(), ("guard", "optimum", "opset")  # these only where they are not usual
            changed = {name: file[name] for name in later if file[name] != getattr(GraphOptions, name)}
            key["file"] = {"form": self.form, "vocab": self.job.vocab} | {name: file[name] for name in names} | changed
        return key

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
            d_mlp=max(
                (len(site.units) for s in model.dense.sublayers() for site in s.sites if site.kind == "neurons"),
                default=0,
            ),
        )


def prepare(job: Job, model: LanguageModel | None = None) -> Plan:
    """Load the model (or take the job's, if the caller has it), build the task's sets, read the circuit file.

    Raises InputError: one of them cannot be read, or they do not fit each other; or the model fails at a task file.
    """
    circuit, record = (None, SearchRecord()) if job.circuit is None else load_circuit(job.circuit)
    if model is None:
        model = load_model(job.model, revision=job.revision, dtype=job.dtype)
    if circuit is not None:
        model.dense.check_circuit(circuit)
    data = load_task(
        job.task,
        require_tokenizer(model),
        seed=job.seed,
        sizes=choose_sizes(job, model, healed=record.learning is not None),
        limits=find_limits(model.dense),
        **job.parameters,
    )
    if data.test.length > model.dense.max_length:
        raise InputError(
            f"the task's prompts have {data.test.length} tokens, the model takes {model.dense.max_length}; "
            "choose a model with a longer context"
        )
    require_labels(data.patching, job.teacher)
    forced = job.force or job.teacher != "dense"  # it learns right answers, so that a model may fail at the task
    doubts = require_fitness(job.task, model, data.selection, force=forced) if is_file_task(job.task) else ()
    precision = () if job.dtype == "float32" else (f"the search computed in {job.dtype}",)
    surgery = None if job.circuit is None or record.learning is None else load_surgery(job.circuit, circuit)
    plan = Plan(job, model, data, circuit, record, (*model.notes, *data.notes, *doubts, *precision), surgery)
    plan = replace(plan, notes=(*plan.notes, *plan.alpha_notes, *plan.ablation_notes))
    if job.logits == "classes":
        name_classes(data, require_tokenizer(model))
    if job.with_past:
        require_growing(by_position=plan.ablation.fixed_length, align=plan.ablation.align)
    return plan


def choose_sizes(job: Job, model: LanguageModel, *, healed: bool = False) -> SplitSizes:
    """The job's sizes; a built-in task makes as many prompts as a gradual search has time to learn from.

    So does one whose circuit was `healed` in such a search: its means are of those prompts.
    """
    sizes = job.sizes or SplitSizes()
    if sizes.patching is not None or not (job.is_gradual or healed) or is_file_task(job.task):
        return sizes
    return replace(sizes, patching=count_lessons(model.dense.count_parameters()))


def hash_sets(data: TaskData) -> str:
    """sha256 over the token ids, answers, masks and choices of every set: equal for equal prompts."""
    digest = hashlib.sha256()
    for dataset in (data.patching, data.selection, data.test, *data.ood.values()):
        digest.update(dataset.input_ids.numpy().tobytes())
        digest.update(dataset.answer_ids.numpy().tobytes())
        for tensor in (dataset.mask, dataset.choice_ids):
            digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
