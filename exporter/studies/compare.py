"""Compare what a user could do with a task: each contestant's systems on the same data, on the same machine.

A system is made, judged on the test and unseen sets, and timed against the dense model's file in alternating blocks
before the next one is made. What a contestant has found is kept in a file as soon as it has ended.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.bench.baseline import describe_machine
from exporter.errors import InputError, MissingRuntimeError, UsageError
from exporter.evidence.latency import Call, Effort, compare_calls, count_cores
from exporter.files.scratch import make_scratch
from exporter.job.options import Job
from exporter.job.plan import Plan, hash_sets, prepare
from exporter.metrics.statistics import Accuracy
from exporter.studies.compare_plot import draw
from exporter.studies.compare_record import Comparison, Point, Result, write_whole
from exporter.studies.contestants import CONTESTANTS, REFERENCE, Candidate, Contestant, Study
from exporter.tasks import SplitSizes

SIZES = (0.2, 0.1, 0.05, 0.03)
EFFORT = Effort()  # of timing one system
FORM = "token ids in, logits of the task's answers out, embeddings of its tokens, float32, ONNX Runtime on the CPU"


@dataclass(frozen=True)
class CompareOptions:
    """What is compared. only: names of contestants; none is all of them. sizes: shares of the dense model's parameters.

    out: the .json file to write, with .csv, .svg and .png beside it; contestants that it has are not run again, unless
    `force` is given. threads: of ONNX Runtime; None is one for each core. Raises UsageError, InputError for values that
    are none.
    """

    task: str
    model: str = "auto"
    only: tuple[str, ...] = ()
    sizes: tuple[float, ...] = SIZES
    prompts: SplitSizes | None = None
    seed: int = 0
    threads: int | None = None
    out: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in CONTESTANTS]:
            raise UsageError(f"--only has {unknown[0]!r:.60}; choose from {', '.join(CONTESTANTS)}")
        if not self.sizes or any(not 0 < size < 1 for size in self.sizes):
            raise UsageError("--sizes are shares of the dense model's parameters, such as 20%,10%,5%")
        if self.out is not None and (self.out.suffix != ".json" or not self.out.parent.is_dir()):
            raise UsageError(f"--out is {str(self.out)!r}; give a name that ends in .json, in a folder that is there")

    @property
    def job(self) -> Job:
        """The job whose model, prompts and form of the file all contestants share."""
        return Job(
            task=self.task, out=None, model=self.model, preset="deploy", seed=self.seed, sizes=self.prompts,
            logits="answers", vocab="task",
        )  # fmt: skip


def run_comparison(
    options: CompareOptions,
    *,
    contestants: dict[str, Contestant] = CONTESTANTS,
    on_point: Callable[[Point], None] | None = None,
) -> Comparison:
    """Run the contestants that are asked for and not known yet; returns all that are known.

    Raises MissingRuntimeError without scikit-learn or matplotlib; InputError: model or task cannot be used, or the file
    is of another comparison.
    """
    require_extra()
    plan = prepare(options.job)
    comparison = _describe(options, plan)
    if options.out is not None and not options.force:
        comparison = replace(comparison, results=comparison.read_results(options.out))
    wanted = [name for name in contestants if name == REFERENCE or not options.only or name in options.only]
    study = Study(plan, options.sizes)
    with make_scratch() as folder:
        timer = _Timer(study, folder, options.threads or count_cores())
        for name in [name for name in wanted if name not in comparison.results]:
            result = _run_contestant(name, contestants[name], study, timer, on_point)
            results = {**comparison.results, name: result}
            known = {name: results[name] for name in contestants if name in results}
            comparison = replace(comparison, results=known)
            if options.out is not None:
                comparison.save(options.out)
    if options.out is not None:
        write_whole(options.out.with_suffix(".csv"), comparison.to_csv())
        draw(comparison, options.out)
    return comparison


def require_extra() -> None:
    """Raise MissingRuntimeError where a package of the extra `compare` is missing."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise MissingRuntimeError(f"{package} is not installed; pip install 'export-circuit[compare]'")


def _describe(options: CompareOptions, plan: Plan) -> Comparison:
    """A comparison without results."""
    data, machine = plan.data, describe_machine()
    sets = {"patching": data.patching, "selection": data.selection, "test": data.test, **data.ood}
    threads = options.threads or count_cores()
    key = {
        "task": data.task,
        "model": plan.model.name,
        "weights": plan.model.sha256,
        "prompts": hash_sets(data),
        "seed": options.seed,
        "sizes": list(options.sizes),
        "processor": machine["processor"],
        "threads": threads,
        "versions": machine["versions"],
    }
    return Comparison(key, machine, {name: len(prompts) for name, prompts in sets.items()}, FORM)


class _Timer:
    """Times systems against the dense model's file, which is written when the first one comes."""

    def __init__(self, study: Study, folder: Path, threads: int) -> None:
        self.study, self.folder, self.threads = study, folder, threads
        self._reference: Call | None = None

    def time(self, candidate: Candidate) -> tuple[int, float, float, tuple[float, float]]:
        """Numbers held, milliseconds of a call, how many times as fast as the dense model, and its interval."""
        prompts = self.study.data.patching
        if self._reference is None:
            folder = self.folder / "dense"
            folder.mkdir()
            self._reference = self.study.wrap(self.study.dense).build(folder, prompts, self.threads).call
        with make_scratch() as folder:
            built = candidate.system.build(folder, prompts, self.threads)
            found = compare_calls(self._reference, built.call, EFFORT)
        return built.parameters, 1e3 * found.circuit_seconds, found.ratio, found.interval()


def _run_contestant(
    name: str, contestant: Contestant, study: Study, timer: _Timer, on_point: Callable[[Point], None] | None
) -> Result:
    """All of a contestant's points; where it cannot go on, those that it has, and why."""
    points: list[Point] = []
    try:
        for candidate, seconds in _clock(contestant(study)):
            points.append(_measure(name, candidate, seconds, study, timer))
            if on_point is not None:
                on_point(points[-1])
    except InputError as error:
        return Result(tuple(points), str(error))
    return Result(tuple(points))


def _clock(candidates: Iterator[Candidate]) -> Iterator[tuple[Candidate, float]]:
    """Each candidate with the seconds that it took to make, what is done with it in between not counted."""
    while True:
        start = time.perf_counter()
        candidate = next(candidates, None)
        if candidate is None:
            return
        yield candidate, time.perf_counter() - start


def _measure(name: str, candidate: Candidate, seconds: float, study: Study, timer: _Timer) -> Point:
    """Judge a system on the sets that no contestant reads, and time it."""
    system, data = candidate.system, study.data
    right = system.mark(data.test)
    held, ms, speedup, interval = timer.time(candidate)
    return Point(
        contestant=name,
        name=candidate.name,
        budget=candidate.budget,
        parameters=system.parameters,
        held=held,
        right="".join(map(str, right.long().tolist())),
        unseen={other: Accuracy.of_values(system.mark(prompts)) for other, prompts in data.ood.items()},
        seconds=round(seconds, 3),
        latency_ms=ms,
        speedup=speedup,
        speedup_ci95=interval,
    )


def parse_sizes(text: str) -> tuple[float, ...]:
    """`20%,10%` as shares. Raises UsageError."""
    try:
        return tuple(float(size.strip().removesuffix("%")) / (100 if "%" in size else 1) for size in text.split(","))
    except ValueError as error:
        raise UsageError(f"--sizes is {text!r:.60}; give shares such as 20%,10%,5%") from error


def parse_names(text: str | None) -> Sequence[str]:
    """`ours,probe` as names; none for None."""
    return () if text is None else tuple(name.strip() for name in text.split(","))
