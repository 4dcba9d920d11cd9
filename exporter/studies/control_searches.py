"""Controls that search again: on shuffled answers, and on resampled prompts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from exporter.circuit import Circuit
from exporter.errors import InputError
from exporter.evidence.controls import Shuffled, Stability
from exporter.evidence.evaluate import evaluate_dense
from exporter.evidence.fitness import find_chance
from exporter.job.build import Found
from exporter.job.options import Job
from exporter.job.plan import Plan
from exporter.job.run import search_plan
from exporter.metrics import Answers, measure
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.surgery import operate, plan_surgery, slice_model
from exporter.search.ranks import Ranks
from exporter.studies.control_cuts import Subject, list_mlps
from exporter.tasks import TaskData
from exporter.tasks.dataset import Dataset

RESAMPLES = 3


def try_shuffled(subject: Subject) -> Shuffled | None:
    """The same job on shuffled answers. What is healed then learns from the answers, whoever the job's teacher is.

    None for a greedy search by a metric in which answers have no part, and where no prompt has one to learn from.
    """
    plan = shuffle_plan(subject.plan)
    job, data = plan.job, subject.plan.data
    if job.is_gradual:
        if data.patching.n_unlabelled == len(data.patching):
            return None
    elif not _reads_answers(subject, plan.data.selection):
        return None
    return run_shuffled(plan, data.test)


def shuffle_plan(plan: Plan) -> Plan:
    """The plan with shuffled answers in the sets that a search reads, and a search that learns from them."""
    generator = torch.Generator().manual_seed(plan.job.seed)
    data = replace(
        plan.data,
        patching=plan.data.patching.shuffle_answers(generator),
        selection=plan.data.selection.shuffle_answers(generator),
    )
    job = replace(plan.job, heal="distil", teacher="labels") if plan.job.is_gradual else plan.job
    return _again(plan, job, data)


def run_shuffled(plan: Plan, test: Dataset) -> Shuffled:
    """A plan with shuffled answers, to the end of its search, and what its circuit does on the true test set."""
    chance = max(find_chance(test), find_constant(test))
    try:
        found = search(plan)
    except InputError as error:
        return Shuffled(chance, refused=str(error))
    dense = plan.model.dense
    sliced = slice_model(dense, found.surgery or plan_surgery(dense, found.circuit, plan.data.patching))
    small, n_left = fold_model(sliced), sliced.count_parameters()
    return Shuffled(chance, None, evaluate_dense(small.answer_logits, test), n_left)


def find_constant(prompts: Dataset) -> float:
    """How often the best answer that is the same for every prompt is right."""
    steps = prompts.steps  # (prompt, step, alternative)
    n_tokens = int(max(ids.max() for ids in (steps, prompts.choice_ids) if ids is not None)) + 1
    counts = torch.zeros(len(steps), steps.shape[1], n_tokens)
    counts.scatter_add_(-1, steps.clamp(min=0), (steps >= 0).float())
    always = counts.sum(0)  # (step, vocab)
    return float(prompts.is_answer(prompts.predict(always.expand(len(steps), -1, -1))).float().mean())


def try_resampled(subject: Subject) -> Stability:
    """The search again, on as many patching and selection prompts, drawn from the job's own with replacement."""
    circuit, dense = subject.circuit, subject.dense
    found, generator = [], torch.Generator().manual_seed(subject.plan.job.seed)
    for _ in range(RESAMPLES):
        data = replace(
            subject.plan.data,
            patching=resample(subject.plan.data.patching, generator),
            selection=resample(subject.plan.data.selection, generator),
        )
        try:
            found.append(search(_again(subject.plan, subject.plan.job, data)).circuit)
        except InputError:
            continue
    names = list_names(circuit)
    return Stability(
        resamples=RESAMPLES,
        refused=RESAMPLES - len(found),
        survival={name: sum(name in list_names(other) for other in found) for name in names},
        heads=tuple(find_jaccard(set(circuit.heads), set(other.heads)) for other in found),
        neurons=tuple(find_jaccard(list_neurons(dense, circuit), list_neurons(dense, other)) for other in found),
    )


def resample(prompts: Dataset, generator: torch.Generator) -> Dataset:
    """As many prompts, drawn with replacement."""
    return prompts.take(torch.randint(len(prompts), (len(prompts),), generator=generator))


def find_jaccard(first: set[object], second: set[object]) -> float:
    """What two sets share of all that is in either (Jaccard, 1901); 1 where both are empty."""
    return len(first & second) / len(first | second) if first | second else 1.0


def list_names(circuit: Circuit) -> list[str]:
    """The heads of a circuit, and the MLPs of which it keeps something."""
    return [*map(str, circuit.heads), *(f"m{layer}" for layer in list_mlps(circuit))]


def list_neurons(dense: CircuitModel, circuit: Circuit) -> set[object]:
    """The hidden units that a circuit keeps, by layer and index; those of a whole MLP, too."""
    sites = [sublayer.sites[-1] for sublayer in dense.sublayers()]
    return {
        (site.layer, unit)
        for site in sites
        if site.kind == "neurons"
        for unit in (site.units if site.layer in circuit.mlps else site.kept(circuit))
    }


def search(plan: Plan) -> Found:
    """The search of a plan, from the start, by this process alone."""
    return search_plan(plan, {}, Ranks(device=plan.job.device))


def _again(plan: Plan, job: Job, data: TaskData) -> Plan:
    """The plan of another search; the model is in float32 by now."""
    return replace(plan, job=replace(job, dtype="float32"), data=data)


def _reads_answers(subject: Subject, shuffled: Dataset) -> bool:
    """Whether the metric of a greedy search has other values on shuffled answers, of the circuit or the dense model."""
    metric, values = subject.plan.job.metric, list[Tensor]()
    small = operate(subject.dense, subject.surgery)
    for prompts in (subject.plan.data.selection, shuffled):
        asked = (prompts.input_ids, prompts.mask, prompts.n_steps)
        ours, theirs = small.answer_logits(*asked), subject.dense.answer_logits(*asked)
        both = (Answers(prompts, ours, theirs), Answers(prompts, theirs, theirs))
        values.append(torch.stack([measure([answers], (metric,))[metric] for answers in both]))
    return not torch.equal(*values)
