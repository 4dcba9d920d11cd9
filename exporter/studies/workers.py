"""The points of a sweep, one after the other or by several processes at once, with the same results."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process

import torch

from exporter.errors import InputError
from exporter.job.options import Job
from exporter.studies.points import Bench, Point, find_like, is_like


def run_points(
    jobs: Mapping[int, Job], finished: Sequence[Point], *, workers: int, bench: Callable[[], Bench]
) -> Iterator[Point]:
    """Compute the points that are not finished, each with one thread; yields each as soon as it is there.

    jobs: by number. finished: points of the same sweep. workers: processes; with one, this process computes in its own
    `bench()`. The points are the same whatever the number. Raises what a job raises; InputError where a worker is gone.
    """
    done = list(finished)
    left = [number for number in jobs if number not in {point.number for point in finished}]
    if workers == 1 or len(left) <= 1:
        for number in left:
            with _one_thread():
                point = bench().make_point(number, jobs[number], find_like(jobs[number], done))
            done.append(point)
            yield point
        return
    others = active_children()
    pool = ProcessPoolExecutor(min(workers, len(left)), get_context("spawn"), _start_worker, (jobs[left[0]],))
    try:
        running: dict[Future[Point], Job] = {}
        while left or running:
            while len(running) < workers and (chosen := _choose_next(left, jobs, running.values())) is not None:
                left.remove(chosen)
                running[pool.submit(_work, chosen, jobs[chosen], find_like(jobs[chosen], done))] = jobs[chosen]
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=lambda future: future.result().number):
                del running[future]
                done.append(future.result())
                yield done[-1]
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InputError("a worker of the sweep died, of too little memory perhaps; give fewer --workers") from error
    finally:  # also where the caller stops in the middle: nobody waits for points that nobody wants
        for child in active_children():
            if child not in others:
                child.terminate()
        pool.shutdown(cancel_futures=True)


def _choose_next(left: Sequence[int], jobs: Mapping[int, Job], running: Collection[Job]) -> int | None:
    """The first point that shares no decisions with one that is being computed.

    So which points it can share some with does not depend on how many workers there are, or how fast.
    """
    free = (number for number in left if not any(is_like(jobs[number], other) for other in running))
    return next(free, None)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch, as each worker has: how a sum is rounded may depend on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_benches: list[Bench] = []  # of a worker: its one Bench


def _start_worker(job: Job) -> None:
    """Load the model; end with the parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _benches.append(Bench(job))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int, job: Job, like: Point | None) -> Point:
    return _benches[0].make_point(number, job, like)
