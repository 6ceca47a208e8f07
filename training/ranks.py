"""One process or several, as torchrun starts them: who am I, on which device, and what all of them agree on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from videomar.console import log
from videomar.errors import DeviceError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def agreed(self, value: float) -> float:
        """The first process's number, in all of them: clocks differ."""
        if self.count == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(number, 0)
        return float(number)

    def mean(self, value: float) -> float:
        """Of all processes' numbers."""
        if self.count == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(number)
        return float(number) / self.count

    def gathered(self, value: Any) -> list[Any]:
        """What every process gave, in the first one; an empty list in the others."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, found)
        return found or []

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def first() -> bool:
    """Whether this process is the one that writes and speaks, before it has joined the others."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process's place among those of torchrun's environment, or alone.

    device: "cpu", "cuda", or "auto" for CUDA where there is one. Raises DeviceError for one that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("PyTorch sees no CUDA device, expected one; give --device cpu or install a CUDA build")
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device(device, local) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Ranks(chosen)
        return
    if rank:
        log.setLevel(logging.ERROR)  # one of them tells how far all are
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(chosen, rank, count)
    finally:
        dist.destroy_process_group()
