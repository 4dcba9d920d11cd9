"""Data-parallel search: each process evaluates its share of the prompts, and all take the same decisions.

`torchrun --nproc-per-node N -m exporter ...` starts them; torch.distributed sums the KL over them (gloo
on the CPU, NCCL on CUDA). Rank 0 alone prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from exporter.errors import InputError, LostRankError, UsageError
from exporter.tasks.dataset import Dataset

TIMEOUT = timedelta(seconds=45)
"""How long a rank waits for the sum over all ranks: far longer than one batch of candidates takes."""
START_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits while rank 0 loads, checks and rehearses; if rank 0 dies, its closed connection ends it."""
_MOST_PROCESSES, _MOST_PORTS = 2**16, 2**16 - 1


@dataclass(frozen=True)
class Ranks:
    """This process and its process group.

    rank: from 0 to size - 1. device: of this process, such as `cuda:1`. start: the group that `share` uses, with
    START_TIMEOUT; None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    start: distributed.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def take_share(self, dataset: Dataset) -> Dataset:
        """This rank's prompts, a contiguous slice. Raises InputError: fewer prompts than ranks."""
        if len(dataset) < self.size:
            raise InputError(f"{len(dataset)} selection prompts are too few for {self.size} processes; start fewer")
        bounds = [len(dataset) * rank // self.size for rank in (self.rank, self.rank + 1)]
        return dataset[slice(*bounds)]

    def sum(self, values: list[float]) -> list[float]:
        """The elementwise sum over all ranks, in float64 and the same on each. Raises LostRankError."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _losing_ranks():
            distributed.all_reduce(total)
            return total.tolist()

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Sum each tensor over all ranks, in place; every rank gives as many, of the same shapes."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors]).to(self.device)
        with _losing_ranks():
            distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, value: object) -> object:
        """Broadcast rank 0's value (pickled); other ranks' arguments are ignored. Raises LostRankError."""
        if self.size == 1:
            return value
        values = [value]
        with _losing_ranks():
            distributed.broadcast_object_list(values, src=0, group=self.start)
        return values[0]


SOLO = Ranks()


@contextmanager
def _losing_ranks() -> Iterator[None]:
    """Turn the backend's RuntimeError into a LostRankError."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL: a closed connection, or nothing heard for TIMEOUT
        raise LostRankError(
            "another process of this search died or does not answer; start all of them again with --resume"
        ) from error


def read_place() -> tuple[int, int]:
    """(rank, number of processes) from the environment variables that torchrun sets; (0, 1) without them.

    Raises UsageError: a variable is missing, no number, or out of range.
    """
    size = _read_number("WORLD_SIZE", 1, 1, _MOST_PROCESSES)
    rank = _read_number("RANK", 0 if size == 1 else None, 0, size - 1)
    if size > 1:
        _read_number("MASTER_PORT", None, 1, _MOST_PORTS)
        if not os.environ.get("MASTER_ADDR", "").strip():
            raise UsageError(f"MASTER_ADDR is not set, and WORLD_SIZE is {size}; {_START}")
    return rank, size


_START = "start the processes with torchrun, or unset RANK and WORLD_SIZE"


def _read_number(name: str, default: int | None, least: int, most: int) -> int:
    """An environment variable as a whole number. Raises UsageError: unset without a default, or not least..most."""
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise UsageError(f"{name} is not set, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; {_START}")
        return default
    # int() would accept 1_0, and raise ValueError above 4300 digits
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise UsageError(f"{name} is {text[:40]!r}; it must be a whole number from {least} to {most}: {_START}")
    return int(text)


@contextmanager
def join_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Join the processes that torchrun started; a context with one rank where there are no others.

    With `device="cuda"` and several processes, each takes the device of its local rank. Raises UsageError: variables
    of torchrun that do not fit; LostRankError: another process does not answer.
    """
    _, size = read_place()
    if size == 1:
        yield Ranks(device=device)
        return
    if device == "cuda":
        device = f"cuda:{_read_number('LOCAL_RANK', 0, 0, max(0, torch.cuda.device_count() - 1))}"
        torch.cuda.set_device(device)
    with _losing_ranks():
        try:
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        except ValueError as error:
            raise UsageError(f"cannot join the other processes ({error}); {_START}") from error
    try:
        with _losing_ranks():
            start = distributed.new_group(backend="gloo", timeout=START_TIMEOUT)
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device, start)
    finally:
        distributed.destroy_process_group()
