"""Several processes, one search: each takes some of the prompts, and all take the same decisions.

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

from exporter.dataset import Dataset
from exporter.errors import InputError, LostRankError

TIMEOUT = timedelta(seconds=45)
"""How long a rank waits for the others before it gives up: one candidate's time, with room."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes that search together."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def take_share(self, dataset: Dataset) -> Dataset:
        """This rank's prompts; raises InputError when there are fewer prompts than ranks."""
        if len(dataset) < self.size:
            raise InputError(f"{len(dataset)} selection prompts are too few for {self.size} processes; start fewer")
        bounds = [len(dataset) * rank // self.size for rank in (self.rank, self.rank + 1)]
        return dataset[slice(*bounds)]

    def sum(self, values: list[float]) -> list[float]:
        """The sums of each rank's values, the same numbers on every rank."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _losing_ranks():
            distributed.all_reduce(total)
            return total.tolist()

    def share(self, value: object) -> object:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        with _losing_ranks():
            distributed.broadcast_object_list(values, src=0)
        return values[0]


SOLO = Ranks()


@contextmanager
def _losing_ranks() -> Iterator[None]:
    """Say what it means when the backend gives up."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL: a closed connection, or nothing heard for TIMEOUT
        raise LostRankError(
            "another process of this search died or does not answer; start all of them again with --resume"
        ) from error


@contextmanager
def join_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone.

    On CUDA each local rank takes the device of its number.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    with _losing_ranks():
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
